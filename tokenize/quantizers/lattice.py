"""A learned diagonal lattice: each channel is rounded to a multiple of its own learned spacing, D numbers in all.

Source: LL-VQ-VAE, arXiv:2310.09382, the diagonal case.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from ...configs.schema import Config
from .scalar import PerChannelQuantizer


class LatticeConfig(Config):
    """Points of a lattice; Q = D codes, one for each channel."""

    kind: Literal["lattice"] = "lattice"
    size: Annotated[int, Field(ge=2)]
    """Multiples of the spacing in each channel, around 0; latents beyond take the outermost."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the loss that pulls latents to their points."""


class LatticeQuantizer(PerChannelQuantizer):
    """See the head of this file."""

    def __init__(self, config: LatticeConfig, dim: int, depth: int = 0, where: str = "quantizer"):
        super().__init__(dim, [config.size] * dim)
        self.config = config
        # The logarithm is learned: a spacing never gets to 0. At first the points cover -1 .. 1.
        first = math.log(2 / (config.size - 1)) - depth * math.log(config.size - 1)
        self.log_spacing = nn.Parameter(torch.full((dim,), first))

    def commitment(self) -> float:
        """See PerChannelQuantizer."""
        return self.config.commitment

    def digits(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        steps = x / self.log_spacing.float().exp() + (self.config.size - 1) / 2
        return steps.round().nan_to_num().clamp(0, self.config.size - 1).long()

    def values(self, digits: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return (digits - (self.config.size - 1) / 2) * self.log_spacing.float().exp()
