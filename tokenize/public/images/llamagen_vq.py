"""The image tokenizers of LlamaGen, VQ-16 and VQ-8: `vq_ds16_c2i.pt`, `vq_ds16_t2i.pt`, `vq_ds8_c2i.pt`.

A pickle {"model": tensors}, or safetensors with the same names. Sizes follow from the tensors; the networks take images
of any size, the released models were trained with 256 x 256 pixels. Codes are searched on the unit sphere.
Licence: MIT.
Source: LlamaGen, arXiv:2406.06525; tensor names of FoundationVision/LlamaGen (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ....configs.files import write_json
from ...base import Tokenizer
from ...image.networks import ImageTokenizerConfig
from ...quantizers.vq import VQConfig
from ..building import any_codebook_terms, public_tensors, read_tokenizer, tokenizer_shapes
from ..checkpoint import write_pickle
from ..folder import PublicFolder
from ..layout import check_tokenizer_layout
from ..tensor_map import Shape, Source, TensorMap, Unused
from .vqgan_names import LLAMAGEN
from .vqgan_tokenizer import check_image_layout, codebook_size, image_side, network_terms, vqgan_config

BOOK = "quantize.embedding.weight"
FIRST = "encoder.conv_blocks.0.res.0.conv1.weight"
USED = "quantize.codebook_used"
"""Buffer of the codes used last in training."""
USED_SHAPE = (65536,)


def is_llamagen_vq(folder: PublicFolder) -> bool:
    """Whether there are weights with LlamaGen's names."""
    return folder.holding(FIRST) is not None


def read_llamagen_vq(folder: PublicFolder, image_size: int | None = None) -> Tokenizer:
    """Read a tokenizer of LlamaGen.

    Args:
        image_size: side of the images in pixels; None: `image_size` of config.json, else 256.
    Raises:
        ValueError: a size that the network does not divide. WeightsError: tensors missing, left over or misshapen.
    """
    checkpoint = folder.holding(FIRST) or folder.checkpoint
    config = llamagen_vq_config(checkpoint.shapes, image_side(folder, image_size), checkpoint.path)
    tensor_map = llamagen_vq_tensor_map(config, checkpoint.shapes.get(USED))
    return read_tokenizer(config, tensor_map, checkpoint)


def llamagen_vq_config(shapes: Mapping[str, Shape], side: int, path: Path) -> ImageTokenizerConfig:
    """Our config of a tokenizer with these tensors."""
    quantizer = _quantizer(codebook_size(shapes, BOOK, path))
    config = vqgan_config(shapes, LLAMAGEN, side, "llamagen-vq", quantizer, path)
    return config.model_copy(update={"name": f"llamagen-vq{2**config.downsamplings}"})


def llamagen_vq_tensor_map(config: ImageTokenizerConfig, used: Shape | None = USED_SHAPE) -> TensorMap:
    """The map of such a tokenizer. used: shape of the buffer of used codes, None: the file has none."""
    ours = tokenizer_shapes(config)
    terms = network_terms(config, ours, LLAMAGEN) | any_codebook_terms("quantizer.codebook", Source(BOOK), ours)
    return TensorMap(terms, {} if used is None else {USED: Unused(used)})


def write_llamagen_vq(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as LlamaGen's `vq_ds16.pt` (or `vq_ds8.pt`), and config.json for the size of its images.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    size = getattr(tokenizer.config.quantizer, "size", 1)
    config = check_image_layout("LlamaGen", tokenizer.config, _quantizer(size))
    tensor_map = llamagen_vq_tensor_map(config)
    expected = llamagen_vq_config(tensor_map.expected(tokenizer_shapes(config)), config.height, folder)
    check_tokenizer_layout("LlamaGen", config, expected)
    tensors = public_tensors(tokenizer, tensor_map)
    folder.mkdir(parents=True, exist_ok=True)
    write_pickle(folder / f"vq_ds{2**config.downsamplings}.pt", {"model": tensors})
    write_json(folder / "config.json", {"model_type": "llamagen-vq", "image_size": config.height})


def _quantizer(size: int) -> VQConfig:
    return VQConfig(size=size, normalise=True, update="gradient", commitment=0.25)
