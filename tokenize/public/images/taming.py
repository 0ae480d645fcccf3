"""VQGAN of taming-transformers, and of latent diffusion (VQ-f4 to VQ-f16): `last.ckpt`, and `model.yaml` beside it.

A Lightning checkpoint {"state_dict": tensors}, with the tensors of the losses, which are not read. The yaml is
optional: sizes follow from the tensors, and where it says something else it is refused. Licence: MIT.
Source: VQGAN, arXiv:2012.09841; tensor names and config keys of CompVis/taming-transformers (MIT).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ....configs.files import write_atomic
from ....configs.schema import read_yaml
from ...base import Tokenizer
from ...image.networks import ImageTokenizerConfig
from ...image.vqgan import VQGANConfig
from ...quantizers.vq import VQConfig
from ..building import any_codebook_terms, public_tensors, read_tokenizer, tokenizer_shapes
from ..checkpoint import Checkpoint, write_pickle
from ..folder import PublicFolder, check_whole
from ..layout import check_tokenizer_layout
from ..tensor_map import CannotWrite, Shape, Source, TensorMap, Term
from .averages import AVERAGES
from .vqgan_names import TAMING
from .vqgan_tokenizer import check_image_layout, codebook_size, image_side, network_terms, vqgan_config

BOOK = "quantize.embedding.weight"
FIRST = "encoder.mid.attn_1.q.weight"
POST = "post_quant_conv.weight"
GUMBEL = "quantize.embed.weight"
IGNORED = ("loss.", "colorize")
"""Losses with their networks, and colors of segmentation maps."""


def is_taming(folder: PublicFolder) -> bool:
    """Whether there are weights with the names of taming-transformers, of no other library's class."""
    found = folder.holding(FIRST)
    return found is not None and POST in found.shapes and "model_type" not in folder.config


def held_weights(folder: PublicFolder) -> Checkpoint:
    """The weights with these names; raises as `open_checkpoint` without."""
    return folder.holding(FIRST) or folder.checkpoint


def read_taming(folder: PublicFolder, image_size: int | None = None) -> Tokenizer:
    """Read a VQGAN.

    Args:
        image_size: side of the images in pixels; None: `resolution` of the yaml, else 256.
    Raises:
        ValueError: a yaml that says something else than the tensors, or settings that are not supported, by name.
            WeightsError: tensors missing, left over or misshapen.
    """
    checkpoint = held_weights(folder)
    if GUMBEL in checkpoint.shapes:
        raise ValueError(f"{checkpoint.path}: tensor '{GUMBEL}' is of a Gumbel quantizer, which is not supported")
    where, params = vqgan_params(folder)
    if params is None and any(name.startswith(AVERAGES) for name in checkpoint.shapes):
        raise ValueError(
            f"{checkpoint.path}: has averaged weights ('{AVERAGES}...'), so it may be of IBQ, whose search differs; "
            f"put the yaml of its config beside it"
        )
    side = image_side(folder, image_size, resolution(params, where))
    config = taming_config(checkpoint.shapes, side, checkpoint.path)
    if params is not None:
        check_params(params, config, where)
    tensor_map = taming_tensor_map(config, (*IGNORED, AVERAGES))
    return read_tokenizer(config, tensor_map, checkpoint)


def taming_config(shapes: Mapping[str, Shape], side: int, path: Path, name: str = "vqgan") -> ImageTokenizerConfig:
    """Our config of a tokenizer with these tensors."""
    config = vqgan_config(shapes, TAMING, side, name, _quantizer(codebook_size(shapes, BOOK, path)), path)
    return config.model_copy(update={"name": f"{name}-f{2**config.downsamplings}"})


def taming_terms(config: ImageTokenizerConfig, spell: Callable[[str], str] = str) -> dict[str, Term]:
    """Terms of such a tokenizer; spell: the name in the file of a tensor with taming-transformers' name."""
    ours = tokenizer_shapes(config)
    book = any_codebook_terms("quantizer.codebook", Source(spell(BOOK)), ours)
    return network_terms(config, ours, TAMING, spell) | book


def taming_tensor_map(config: ImageTokenizerConfig, ignored: tuple[str, ...] = ()) -> TensorMap:
    """The map of such a tokenizer."""
    return TensorMap(taming_terms(config), ignored=ignored)


def vqgan_params(folder: PublicFolder) -> tuple[str, dict[str, Any] | None]:
    """`model.params` (or Lightning's `model.init_args`) of the yaml beside the weights, and where it is; None without.

    Its `target` is the class that it names. ValueError: several files, or one that is not usable.
    """
    inside = folder.path if folder.path.is_dir() else folder.path.parent
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(inside.glob("*.y*ml")):
        described = read_yaml(file)
        model = described.get("model") if isinstance(described, dict) else None
        params = model.get("params", model.get("init_args")) if isinstance(model, dict) else None
        if isinstance(model, dict) and isinstance(params, dict) and isinstance(params.get("ddconfig"), dict):
            found[str(file)] = params | {"target": model.get("target", model.get("class_path"))}
    if len(found) > 1:
        raise ValueError(f"{inside}: several configs may be of the weights: {', '.join(found)}; leave one of them")
    return next(iter(found.items()), (str(inside), None))


def resolution(params: dict[str, Any] | None, where: str) -> int:
    """Side of the images in training, of a yaml; 256 without one."""
    side = 256 if params is None else params["ddconfig"].get("resolution", 256)
    return check_whole(side, "image_size", f"{where}: resolution")


def check_params(params: dict[str, Any], config: ImageTokenizerConfig, where: str) -> None:
    """Raise ValueError where a yaml says something else than the tensors, or something that is not supported."""
    held = params["ddconfig"]
    expected = describe_params(config, resolution(params, where))
    supported = {"double_z": (False,), "resamp_with_conv": (True,), "attn_type": ("vanilla",)}
    for key, allowed in supported.items():
        if held.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{where}: {key} is {held[key]!r}; only {allowed[0]!r} is supported")
    if params.get("remap") is not None:
        raise ValueError(f"{where}: remap is {params['remap']!r}; only all codes of the codebook are supported")
    if params.get("l2_normalize", False) is not False:
        raise ValueError(f"{where}: l2_normalize is {params['l2_normalize']!r}; only false is supported")
    for key, value in (expected["ddconfig"] | {key: expected[key] for key in ("embed_dim", "n_embed")}).items():
        said = params.get(key, value) if key in ("embed_dim", "n_embed") else held.get(key, value)
        same = sorted(said) == sorted(value) if key == "attn_resolutions" and isinstance(said, list) else said == value
        if not same and key not in ("dropout", "double_z"):
            raise ValueError(f"{where}: {key} is {str(said)[:80]}, but the tensors have {value}")


def describe_params(config: ImageTokenizerConfig, side: int) -> dict[str, Any]:
    """`model.params` of a tokenizer; side: of the images in training."""
    encoder, quantizer = config.encoder, config.quantizer
    assert isinstance(encoder, VQGANConfig) and isinstance(quantizer, VQConfig)
    levels = range(len(encoder.multipliers))
    return {
        "embed_dim": config.latent_dim,
        "n_embed": quantizer.size,
        "ddconfig": {
            "double_z": False,
            "z_channels": encoder.inner_dim,
            "resolution": side,
            "in_channels": config.channels,
            "out_ch": config.channels,
            "ch": encoder.channels,
            "ch_mult": list(encoder.multipliers),
            "num_res_blocks": encoder.blocks,
            "attn_resolutions": [side // 2**level for level in levels if encoder.has_attention(level)],
            "dropout": 0.0,
        },
    }


def write_taming(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as taming-transformers' `last.ckpt` and `model.yaml`.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    size = getattr(tokenizer.config.quantizer, "size", 1)
    config = check_image_layout("taming-transformers", tokenizer.config, _quantizer(size))
    if config.encoder != config.decoder:
        raise CannotWrite(
            "taming-transformers' layout has one config for encoder and decoder, found two different ones"
        )
    tensor_map = taming_tensor_map(config)
    expected = taming_config(tensor_map.expected(tokenizer_shapes(config)), config.height, folder)
    check_tokenizer_layout("taming-transformers", config, expected)
    write_lightning(folder, public_tensors(tokenizer, tensor_map), "target", "taming.models.vqgan.VQModel", config)


def write_lightning(
    folder: Path, tensors: Mapping[str, Tensor], key: str, target: str, config: ImageTokenizerConfig, **more: Any
) -> None:
    """Write last.ckpt and model.yaml. key: under which the yaml names the class; more: parameters of it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pickle(folder / "last.ckpt", {"state_dict": dict(tensors)})
    params = describe_params(config, config.height) | {"lossconfig": {"target": "torch.nn.Identity"}} | more
    model = {key: target, "params" if key == "target" else "init_args": params}
    write_atomic(folder / "model.yaml", json.dumps({"model": model}, indent=2).encode())  # JSON is YAML


def _quantizer(size: int) -> VQConfig:
    return VQConfig(size=size, update="gradient", commitment=0.25)
