"""Feed-forward layers by name: SwiGLU, GELU and the tanh approximation of GELU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.fused_autograd import gated
from ..ops.linear import Linear, with_zero_bias

FeedForwardName = Literal["swiglu", "gelu", "gelu_tanh"]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix."""

    def __init__(self, width: int, hidden: int, bias: bool = False):
        super().__init__()
        self.gate_up = with_zero_bias(Linear(width, 2 * hidden, bias=bias))
        self.down = with_zero_bias(Linear(hidden, width, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.gate_up(x)))


class GELU(nn.Module):
    """down(gelu(up(x))), the exact GELU."""

    def __init__(self, width: int, hidden: int, bias: bool = False):
        super().__init__()
        self.up = with_zero_bias(Linear(width, hidden, bias=bias))
        self.down = with_zero_bias(Linear(hidden, width, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class TanhGELU(GELU):
    """`GELU` by its approximation with tanh. A class of its own: the fused steps know `GELU` only."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


FEED_FORWARDS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "swiglu": SwiGLU,
    "gelu": GELU,
    "gelu_tanh": TanhGELU,
}
"""Built as FEED_FORWARDS[name](width, hidden, bias)."""
