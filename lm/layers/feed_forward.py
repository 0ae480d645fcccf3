"""Feed-forward layers by name: SwiGLU and GELU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.fused_autograd import gated
from ..ops.linear import Linear

FeedForwardName = Literal["swiglu", "gelu"]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.gate_up(x)))


class GELU(nn.Module):
    """down(gelu(up(x))), the exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = Linear(width, hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


FEED_FORWARDS: dict[str, Callable[[int, int], nn.Module]] = {"swiglu": SwiGLU, "gelu": GELU}
"""Built as FEED_FORWARDS[name](width, hidden)."""
