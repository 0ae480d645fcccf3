"""IBQ of SEED-Voken, `imagenet256_16384.ckpt`, with its config's yaml beside it.

VQGAN's networks under taming-transformers' names, and codes by the largest dot product. The yaml is needed: tensors do
not tell this search from taming-transformers'. With `use_ema`, the averages of the weights are the model, as in IBQ's
own evaluation: `model_ema.encoderconv_inweight` is that of `encoder.conv_in.weight`. Licence: Apache-2.0.
Source: IBQ, arXiv:2412.02692; tensor names and config keys of TencentARC/SEED-Voken (Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

from ...base import Tokenizer
from ...image.networks import ImageTokenizerConfig
from ...quantizers.vq import VQConfig
from ..building import public_tensors, read_tokenizer, tokenizer_shapes
from ..folder import PublicFolder
from ..layout import check_tokenizer_layout
from ..tensor_map import CannotWrite, TensorMap
from .averages import averaged_name, with_averages
from .taming import (
    IGNORED,
    check_params,
    held_weights,
    is_taming,
    resolution,
    taming_config,
    taming_tensor_map,
    taming_terms,
    vqgan_params,
    write_lightning,
)
from .vqgan_tokenizer import check_image_layout, image_side

TARGET = "src.IBQ.models.ibqgan.IBQ"
TARGETS = (TARGET, "src.IBQ.models.ibqgan_pretrain.IBQ")


def is_ibq(folder: PublicFolder) -> bool:
    """Whether there are weights with taming-transformers' names and a yaml that names IBQ's class."""
    if not is_taming(folder):
        return False
    params = vqgan_params(folder)[1]
    return params is not None and params["target"] in TARGETS


def read_ibq(folder: PublicFolder, image_size: int | None = None) -> Tokenizer:
    """Read a tokenizer of IBQ.

    Args:
        image_size: side of the images in pixels; None: `resolution` of the yaml.
    Raises:
        ValueError: a yaml that says something else than the tensors, or settings that are not supported, by name.
            WeightsError: tensors missing, left over or misshapen.
    """
    checkpoint = held_weights(folder)
    where, params = vqgan_params(folder)
    assert params is not None, folder.path
    averaged = params.get("use_ema", False)
    if not isinstance(averaged, bool):
        raise ValueError(f"{where}: use_ema must be true or false, found {str(averaged)[:80]!r}")
    side = image_side(folder, image_size, resolution(params, where))
    config = ibq_config(taming_config(checkpoint.shapes, side, checkpoint.path, "ibq"))
    check_params(params, config, where)
    return read_tokenizer(config, ibq_tensor_map(config, averaged), checkpoint)


def ibq_config(config: ImageTokenizerConfig) -> ImageTokenizerConfig:
    """The config of a VQGAN with IBQ's quantizer."""
    return config.model_copy(update={"quantizer": _quantizer(getattr(config.quantizer, "size", 1))})


def ibq_tensor_map(config: ImageTokenizerConfig, averaged: bool = True) -> TensorMap:
    """The map of such a tokenizer. averaged: the averages are read, and written as the weights, too."""
    if not averaged:
        return taming_tensor_map(config, IGNORED)
    weights = taming_tensor_map(config).expected(tokenizer_shapes(config))
    return with_averages(taming_terms(config, averaged_name), weights, IGNORED)


def write_ibq(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as IBQ's `last.ckpt` and `model.yaml`, its weights as the averages as well.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    size = getattr(tokenizer.config.quantizer, "size", 1)
    config = check_image_layout("IBQ", tokenizer.config, _quantizer(size))
    if config.encoder != config.decoder:
        raise CannotWrite("IBQ's layout has one config for encoder and decoder, found two different ones")
    shapes = taming_tensor_map(config).expected(tokenizer_shapes(config))
    check_tokenizer_layout("IBQ", config, ibq_config(taming_config(shapes, config.height, folder)))
    tensors = public_tensors(tokenizer, ibq_tensor_map(config))
    write_lightning(folder, tensors, "class_path", TARGET, config, use_ema=True)


def _quantizer(size: int) -> VQConfig:
    return VQConfig(size=size, update="index", search="product", commitment=0.25, kmeans_init=False)
