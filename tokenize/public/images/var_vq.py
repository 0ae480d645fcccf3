"""The multi-scale image tokenizer of VAR: `vae_ch160v4096z32.pth`.

A pickle of tensors. Which scales it has is not in the file: those published are for 256 x 256 and 512 x 512 pixels. A
config.json with `image_size` and `v_patch_nums` (sides of the scales) replaces them. Licence: MIT.
Source: VAR, arXiv:2404.02905; tensor names of FoundationVision/VAR (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....configs.files import write_json
from ...base import Tokenizer
from ...image.networks import ImageTokenizerConfig
from ...quantizers.combinators.multi_scale import ScalesConfig
from ...quantizers.vq import VQConfig
from ..building import any_codebook_terms, count_levels, public_tensors, read_tokenizer, tokenizer_shapes
from ..checkpoint import write_pickle
from ..folder import PublicFolder
from ..layout import check_tokenizer_layout
from ..tensor_map import CannotWrite, Shape, Source, TensorMap, Unused
from .vqgan_names import VAR
from .vqgan_tokenizer import check_image_layout, codebook_size, image_side, network_terms, vqgan_config

BOOK = "quantize.embedding.weight"
FIRST_PHI = "quantize.quant_resi.qresi_ls.0.weight"
PHI = "quantize.quant_resi.qresi_ls."
HITS = "quantize.ema_vocab_hit_SV"
"""Buffer of the codes used in training, [scales, codes]."""

PUBLISHED_SCALES = {
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
"""Sides of the scales by the side of the last one: of 256 x 256 and of 512 x 512 pixels at 16 pixels a code."""


def is_var_vq(folder: PublicFolder) -> bool:
    """Whether there are weights with the names of VAR's tokenizer."""
    return folder.holding(FIRST_PHI) is not None


def read_var_vq(folder: PublicFolder, image_size: int | None = None) -> Tokenizer:
    """Read VAR's tokenizer.

    Args:
        image_size: side of the images in pixels; None: `image_size` of config.json, else 256.
    Raises:
        ValueError: no scales are known for the size. WeightsError: tensors missing, left over or misshapen.
    """
    checkpoint = folder.holding(FIRST_PHI) or folder.checkpoint
    side, sides = image_side(folder, image_size), folder.config.get("v_patch_nums")
    config = var_vq_config(checkpoint.shapes, side, sides, checkpoint.path)
    tensor_map = var_vq_tensor_map(config, checkpoint.shapes.get(HITS))
    return read_tokenizer(config, tensor_map, checkpoint)


def var_vq_config(shapes: Mapping[str, Shape], side: int, sides: Any, path: Path) -> ImageTokenizerConfig:
    """Our config of a tokenizer with these tensors; sides: of the scales, None: as published."""
    size = codebook_size(shapes, BOOK, path)
    config = vqgan_config(shapes, VAR, side, "var-vq", _quantizer(size, (1,), 0), path)
    rows = config.geometry.rows
    found = PUBLISHED_SCALES.get(rows) if sides is None else sides
    if found is None:
        known = " or ".join(str(grid * side // rows) for grid in PUBLISHED_SCALES)
        raise ValueError(
            f"{path}: no scales are published for images of {side} pixels; choose an image size of {known}, or write "
            f'{{"image_size": {side}, "v_patch_nums": [1, ..., {rows}]}} in its config.json'
        )
    if not isinstance(found, Sequence) or not found or not all(type(one) is int and one > 0 for one in found):
        raise ValueError(f"{path}: v_patch_nums must be a list of whole numbers, found {str(found)[:80]!r}")
    if found[-1] != rows or list(found) != sorted(found):
        raise ValueError(f"{path}: v_patch_nums must increase to {rows} at {side} pixels, found {str(found)[:80]}")
    return config.model_copy(update={"quantizer": _quantizer(size, tuple(found), count_levels(shapes, PHI, ".weight"))})


def var_vq_tensor_map(config: ImageTokenizerConfig, hits: Shape | None = None) -> TensorMap:
    """The map of such a tokenizer. hits: shape of the buffer of used codes, None: the file has none."""
    ours, quantizer = tokenizer_shapes(config), config.quantizer
    assert isinstance(quantizer, ScalesConfig)
    terms = network_terms(config, ours, VAR)
    terms |= any_codebook_terms("quantizer.levels.0.codebook", Source(BOOK), ours)
    for number in range(quantizer.convolutions):
        for leaf in ("weight", "bias"):
            terms[f"quantizer.phi.{number}.{leaf}"] = Source(f"{PHI}{number}.{leaf}")
    return TensorMap(terms, {} if hits is None else {HITS: Unused(hits)})


def write_var_vq(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as VAR's `vae.pth`, and config.json for the sizes of its images and scales.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    quantizer = tokenizer.config.quantizer
    if not isinstance(quantizer, ScalesConfig):
        raise CannotWrite(f"VAR's layout holds a quantizer of kind scales, found '{quantizer.kind}'")
    if quantizer.convolutions < 2:
        raise CannotWrite(f"VAR's layout holds two or more phi, found quantizer.convolutions {quantizer.convolutions}")
    sides, size = tuple(rows for rows, _ in quantizer.sizes), getattr(quantizer.quantizer, "size", 1)
    config = check_image_layout("VAR", tokenizer.config, _quantizer(size, sides, quantizer.convolutions))
    tensor_map = var_vq_tensor_map(config, (len(sides), size))
    expected = var_vq_config(tensor_map.expected(tokenizer_shapes(config)), config.height, sides, folder)
    check_tokenizer_layout("VAR", config, expected)
    tensors = public_tensors(tokenizer, tensor_map)
    folder.mkdir(parents=True, exist_ok=True)
    write_pickle(folder / "vae.pth", tensors)
    described = {"model_type": "var-vq", "image_size": config.height, "v_patch_nums": list(sides)}
    write_json(folder / "config.json", described)


def _quantizer(size: int, sides: tuple[int, ...], convolutions: int) -> ScalesConfig:
    return ScalesConfig(
        sizes=tuple((side, side) for side in sides),
        convolutions=convolutions,
        quantizer=VQConfig(size=size, update="gradient", commitment=0.25),
    )
