"""Residual quantization: each level quantizes what the levels before it left over; the value is the sum of all.

    rest 0 = x,   q i = level i (rest i),   rest i+1 = rest i - q i (no gradient through q i),   value = q 0 + q 1 + ...

One straight-through gradient goes around the sum (Quantizer.forward): one per level would multiply the encoder's
gradient by the number of levels. The commitment losses of all levels reach the encoder, as the rest keeps x's gradient.
Source: SoundStream, arXiv:2107.03312; level dropout per sample: arXiv:2306.06546.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from .config import Config
from .fsq import FiniteScalarQuantizer, FSQConfig
from .quantized import Parts, Quantizer
from .vq import VectorQuantizer, VQConfig

LEAVES = {"vq": VectorQuantizer, "fsq": FiniteScalarQuantizer}


class ResidualConfig(Config):
    """Several levels of the same kind of quantizer, coarse first."""

    kind: Literal["residual"] = "residual"
    levels: PositiveInt
    """Number of codebooks."""
    quantizer: Annotated[VQConfig | FSQConfig, Field(discriminator="kind")]
    """Of each level; every level has its own state."""
    level_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of the training samples that use a random number of levels, so that any first few codes decode well."""


class ResidualQuantizer(Quantizer):
    """See the head of this file. Q = levels."""

    levels: Sequence[VectorQuantizer | FiniteScalarQuantizer]

    def __init__(self, config: ResidualConfig, dim: int, depth: int = 0):
        levels = [LEAVES[config.quantizer.kind](config.quantizer, dim, depth + level) for level in range(config.levels)]
        super().__init__(dim, [level.cardinalities[0] for level in levels])
        self.config = config
        self.levels = nn.ModuleList(levels)  # pyright: ignore[reportAttributeAccessIssue]

    def quantize(self, x: Tensor, mask: Tensor | None) -> Parts:
        """See Quantizer.quantize. Losses are summed over levels by name; a dropped level has code -1 and loss 0."""
        used = self.draw_levels(x.shape[0]).to(x.device) if self.training and self.config.level_dropout else None
        rest, total, codes = x, torch.zeros_like(x), []
        losses: dict[str, Tensor] = {}
        for number, level in enumerate(self.levels):
            kept = mask
            if used is not None:
                kept = (used > number)[:, None].expand(x.shape[:2])
                kept = kept if mask is None else kept & mask
                rest = torch.where(kept[..., None], rest, 0.0)
            part = level.quantize(rest, kept)
            rest = rest - part.vectors.detach()
            total = total + part.vectors
            codes.append(part.codes)
            for name, loss in part.losses.items():
                losses[name] = losses[name] + loss if name in losses else loss
        return Parts(total, torch.cat(codes, dim=-1), losses)

    def draw_levels(self, num_samples: int) -> Tensor:
        """How many levels each sample uses, [B] long, from torch's global generator."""
        dropped = torch.rand(num_samples) < self.config.level_dropout
        return torch.where(dropped, torch.randint(1, len(self.levels) + 1, (num_samples,)), len(self.levels))

    def search(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, Q]."""
        rest, codes = x, []
        for level in self.levels:
            codes.append(level.search(rest))
            rest = rest - level.lookup(codes[-1])
        return torch.cat(codes, dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """[N, Q] -> [N, D], summed coarse first as in `quantize`."""
        total = torch.zeros(1, device=codes.device)
        for number, level in enumerate(self.levels):
            total = total + level.lookup(codes[:, number, None])
        return total

    def vectors(self) -> Tensor:
        """[Q, V, D]."""
        return torch.cat([level.vectors() for level in self.levels])
