"""Normalization layers by name: RMSNorm and LayerNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ..ops.fused_autograd import normed
from ..ops.rotary import at_least_float32

NormName = Literal["rms", "layer"]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normed(at_least_float32(x), self.weight, self.eps).to(x.dtype)


NORMS: dict[str, Callable[[int, float], nn.Module]] = {"rms": RMSNorm, "layer": nn.LayerNorm}
"""Built as NORMS[name](width, eps). "layer" subtracts the mean first, and has a bias."""


def make_plain_layer_norm(width: int, eps: float) -> nn.LayerNorm:
    """LayerNorm without weights of its own."""
    return nn.LayerNorm(width, eps, elementwise_affine=False)
