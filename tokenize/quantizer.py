"""Quantizers by config: the table of kinds and the one way to make them.

A new kind is one file with a config and a Quantizer, one entry in the union and in the table here, and one line in the
table of tests/tokenize/test_quantizer_laws.py.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .chain import ChainConfig, ChainQuantizer
from .fsq import FiniteScalarQuantizer, FSQConfig
from .quantized import Quantized, Quantizer, pack_codes, unpack_codes
from .residual import ResidualConfig, ResidualQuantizer
from .vq import VectorQuantizer, VQConfig

LeafConfig = VQConfig | FSQConfig
CombinatorConfig = ResidualConfig | ChainConfig
QuantizerConfig = Annotated[LeafConfig | CombinatorConfig, Field(discriminator="kind")]

QUANTIZERS = {
    "vq": VectorQuantizer,
    "fsq": FiniteScalarQuantizer,
    "residual": ResidualQuantizer,
    "chain": ChainQuantizer,
}

# Their parts may be any of the union, which did not exist when they were defined.
for _part in (ResidualConfig, ChainConfig):
    _part.model_rebuild(_types_namespace={"QuantizerConfig": QuantizerConfig})


def make_quantizer(
    config: LeafConfig | CombinatorConfig, dim: int, depth: int = 0, where: str = "quantizer"
) -> Quantizer:
    """A fresh quantizer of latents with `dim` channels.

    Raises:
        ConfigError: a tree that cannot be; it begins with the path of the node, "quantizer.stages.1.groups: ...".
    """
    return QUANTIZERS[config.kind](config, dim, depth, where)


__all__ = [
    "ChainConfig",
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
