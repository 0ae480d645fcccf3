"""Residual quantization: a chain (see chain.py) of the same kind of quantizer, several times.

Source: SoundStream, arXiv:2107.03312; one codebook for all levels: RQ-VAE, arXiv:2203.01941; level dropout per sample:
arXiv:2306.06546, from a set of numbers: EnCodec, arXiv:2210.13438.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ....configs.schema import LayerCount
from ..base import MakeQuantizer
from .chain import ChainQuantizer, LevelDropout

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class ResidualConfig(LevelDropout):
    """Several levels of the same kind of quantizer, coarse first."""

    added = LevelDropout.added | {"shared"}

    kind: Literal["residual"] = "residual"
    levels: LayerCount
    """Number of levels."""
    quantizer: QuantizerConfig
    """Of each level."""
    shared: bool = False
    """One quantizer, with one codebook, serves all levels; otherwise every level has its own state."""


class ResidualQuantizer(ChainQuantizer):
    """See the head of this file. Q = levels, times the codes of one."""

    def __init__(self, config: ResidualConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        own = 1 if config.shared else config.levels
        parts = [make(config.quantizer, dim, depth + level, f"{where}.quantizer") for level in range(own)]
        self._take(config, parts, config.levels, where)
