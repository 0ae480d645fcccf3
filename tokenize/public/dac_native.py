"""DAC in the files of its authors (descript-audio-codec): one pickle {state_dict, metadata: {kwargs}}, such as
weights_24khz_8kbps_0.0.4.pth.

Source: descriptinc/descript-audio-codec (MIT), `dac/model/dac.py`: names, arguments and their defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...configs.files import write_atomic
from ..audio.networks import AudioTokenizerConfig
from ..base import Tokenizer
from .building import public_tensors, weight_g
from .dac import LayerNames, dac_tensor_map, describe_dac, read_dac_tensors
from .folder import PublicFolder, typed_values

DEFAULTS: dict[str, Any] = {
    "encoder_dim": 64,
    "encoder_rates": [2, 4, 8, 8],
    "latent_dim": None,
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 4, 2],
    "codebook_size": 1024,
    "codebook_dim": None,
    "sample_rate": 44100,
}
"""Defaults of the class DAC; those of codebook_dim, 8 or a list, and of latent_dim are filled in below."""
NATIVE: LayerNames = {
    "encoder.first": "encoder.block.0",
    "encoder.unit": "encoder.block.{after}.block.{unit}",
    "encoder.snake": "encoder.block.{after}.block.3",
    "encoder.strided": "encoder.block.{after}.block.4",
    "encoder.last_snake": "encoder.block.{end}",
    "encoder.last": "encoder.block.{last}",
    "decoder.first": "decoder.model.0",
    "decoder.snake": "decoder.model.{after}.block.0",
    "decoder.strided": "decoder.model.{after}.block.1",
    "decoder.unit": "decoder.model.{after}.block.{below}",
    "decoder.last_snake": "decoder.model.{end}",
    "decoder.last": "decoder.model.{last}",
    "unit": "block.0 block.1 block.2 block.3",
}
FILE = "weights.pth"


def is_dac_native(folder: PublicFolder) -> bool:
    """Whether the weights are a pickle of the original library's class DAC."""
    return not folder.config and "encoder_rates" in _arguments(folder)


def _arguments(folder: PublicFolder) -> dict[str, Any]:
    """metadata.kwargs of the pickle, empty if it has none."""
    described = folder.checkpoint.described
    metadata = described.get("metadata") if isinstance(described, dict) else None
    arguments = metadata.get("kwargs") if isinstance(metadata, dict) else None
    return arguments if isinstance(arguments, dict) else {}


def read_dac_native(folder: PublicFolder, codebooks: int | None = None) -> Tokenizer:
    """Read a DAC of the original library; see `read_dac`."""
    where = f"{folder.checkpoint.path}: metadata.kwargs"
    settings = typed_values(_arguments(folder), DEFAULTS, where)
    sizes = settings["codebook_dim"]
    if isinstance(sizes, list) and len(set(map(str, sizes))) == 1:
        sizes = sizes[0]
    settings["codebook_dim"] = 8 if sizes is None else sizes
    if type(settings["codebook_dim"]) is not int:
        raise ValueError(f"{where}: codebook_dim is {str(sizes)[:80]}; only one size for all codebooks is supported")
    if settings["latent_dim"] is None:
        settings["latent_dim"] = settings["encoder_dim"] << min(len(settings["encoder_rates"]), 64)
    return read_dac_tensors(folder.checkpoint, settings, codebooks, NATIVE, where)


def write_dac_native(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as weights.pth of the original library.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    settings = describe_dac(tokenizer, "descript-audio-codec")
    config = tokenizer.config
    assert isinstance(config, AudioTokenizerConfig)
    tensors = public_tensors(tokenizer, dac_tensor_map(config, NATIVE, weight_g))
    folder.mkdir(parents=True, exist_ok=True)
    content = {"state_dict": tensors, "metadata": {"kwargs": settings}}
    write_atomic(folder / FILE, lambda part: torch.save(content, part))
