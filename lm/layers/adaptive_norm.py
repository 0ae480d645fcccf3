"""Adaptive layer normalization (AdaLN): a condition scales and shifts what a layer reads, and gates what it adds.

    condition [B, D]  ──►  linear(silu(.))  ──►  gates, scales, shifts [B, 1, D] each
    x + gate * layer(norm(x) * (1 + scale) + shift)        norm: without weights of its own

Source: DiT, arXiv:2212.09748; order of the vectors and initial weights of VAR (FoundationVision/VAR, MIT).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.linear import Linear, with_zero_bias

AdaptiveName = Literal["own", "shared"]
"""own: each block computes its vectors from the condition. shared: one layer for all blocks, each adds its own."""
BLOCK_VECTORS = 6
"""Gates, scales and shifts, each of the attention and of the feed-forward."""


class Modulation(nn.Module):
    """A condition [B, D] -> vectors [B, 1, count, D], the gates first."""

    def __init__(self, width: int, count: int, gates: int = 0):
        super().__init__()
        self.count, self.gates = count, gates
        self.linear = with_zero_bias(Linear(width, count * width))

    def forward(self, condition: Tensor) -> Tensor:
        return self.linear(F.silu(condition)).unflatten(-1, (1, self.count, -1))

    def initialize_(self) -> None:
        """Halve the initial weights, and nearly close the gates: a new block adds almost nothing."""
        if not self.linear.weight.is_meta:
            with torch.no_grad():
                weights = self.linear.weight.view(self.count, -1)
                weights[: self.gates] *= 1e-5
                weights[self.gates :] *= 0.5


class ModulationOffset(nn.Module):
    """Vectors [1, 1, 6, D] that a block adds to those of a shared layer."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1, BLOCK_VECTORS, width))

    def forward(self, shared: Tensor) -> Tensor:
        return self.weight + shared

    def initialize_(self) -> None:
        """As for `Modulation`."""
        if not self.weight.is_meta:
            with torch.no_grad():
                self.weight[:, :, :2] *= 1e-5
                self.weight[:, :, 2:] *= 0.5


class AdaptiveNorm(nn.Module):
    """norm(x) * (1 + scale) + shift, of a condition: x [B, S, D], condition [B, D]."""

    def __init__(self, width: int, norm: nn.Module):
        super().__init__()
        self.norm = norm
        self.modulation = Modulation(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition).unbind(2)
        return modulate(self.norm(x), scale, shift)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return x * (1 + scale) + shift
