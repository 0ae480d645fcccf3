"""Quantizers by config: the table of kinds and the one way to make them.

A new kind is one file with a config and a Quantizer, one entry in the union and in the table here, and one line in the
table of tests/tokenize/test_quantizer_laws.py.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .fsq import FiniteScalarQuantizer, FSQConfig
from .quantized import Quantized, Quantizer, pack_codes, unpack_codes
from .residual import ResidualConfig, ResidualQuantizer
from .vq import VectorQuantizer, VQConfig

QuantizerConfig = Annotated[VQConfig | FSQConfig | ResidualConfig, Field(discriminator="kind")]

QUANTIZERS = {"vq": VectorQuantizer, "fsq": FiniteScalarQuantizer, "residual": ResidualQuantizer}


def make_quantizer(config: VQConfig | FSQConfig | ResidualConfig, dim: int) -> Quantizer:
    """A fresh quantizer of latents with `dim` channels."""
    return QUANTIZERS[config.kind](config, dim)


__all__ = [
    "FSQConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "ResidualConfig",
    "VQConfig",
    "make_quantizer",
    "pack_codes",
    "unpack_codes",
]
