"""Operations with handwritten gradients, because those of autograd take more memory traffic.

Each computes the same as the plain operations next to it, which run when no gradient is needed. Norms and gates are
memory-bound, not compute-bound.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last axis of x [*, D], in x's dtype."""
    if torch.is_grad_enabled():
        return _Normed.apply(x, weight, eps)  # type: ignore[return-value]
    return _scaled(x, eps)[0] * weight


def gated(x: Tensor) -> Tensor:
    """silu(gate) * up of x [*, 2 N], the concatenation of gate and up -> [*, N]."""
    if torch.is_grad_enabled():
        return _Gated.apply(x)  # type: ignore[return-value]
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def _scaled(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / rms(x), and 1 / rms(x)."""
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return x * scale, scale


class _Normed(torch.autograd.Function):
    """On a CPU it takes half the time of autograd of the plain operations, or of torch.nn.functional.rms_norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _scaled(x, eps)
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, weight, scale = ctx.saved_tensors
        gradient = gradients[0].to(normed.dtype)
        along = (gradient * normed).flatten(0, -2)
        share = (along @ weight.to(along.dtype)).view(scale.shape) / normed.shape[-1]
        into_x = torch.addcmul(gradient * weight, normed, share, value=-1) * scale
        return into_x, along.sum(dim=0).to(weight.dtype), None


class _Gated(torch.autograd.Function):
    """Writes the gradients of gate and up into one tensor; autograd would create two and copy them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        active = F.silu(gate)
        ctx.save_for_backward(x, active)
        return active * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, active = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        into_x = torch.empty_like(x)
        into_gate, into_up = into_x.chunk(2, dim=-1)
        torch.mul(gradients[0], active, out=into_up)
        torch.ops.aten.silu_backward.grad_input(gradients[0] * up, gate, grad_input=into_gate)
        return into_x
