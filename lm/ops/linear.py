"""x @ weight.T + bias that is fast in bfloat16 on CPUs without bfloat16 instructions.

On such CPUs torch processes bfloat16 numbers one by one, seven to fifteen times slower than float32. The product of two
bfloat16 numbers is exact in float32, and sums are always accumulated in float32, so the rounded float32 result is the
same up to the order of summation.
"""

from __future__ import annotations

import functools
import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """torch.nn.Linear, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def with_zero_bias(layer: Linear) -> Linear:
    """The layer with its bias, if it has one, set to 0."""
    if layer.bias is not None and not layer.bias.is_meta:
        nn.init.zeros_(layer.bias)
    return layer


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear of x [*, N] and weight [M, N] -> [*, M], with torch's dtype and autocast rules."""
    if not (x.device.type == "cpu" and _in_bfloat16(x, weight) and lacks_bfloat16()):
        return F.linear(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        return F.linear(*(rounded(tensor) for tensor in (x, weight, bias))).bfloat16()  # type: ignore[arg-type]


def rounded(x: Tensor | None) -> Tensor | None:
    """x rounded to bfloat16, in float32; so is its gradient."""
    return None if x is None else x.bfloat16().float()


@functools.cache
def lacks_bfloat16() -> bool:
    """Whether this CPU lacks instructions for bfloat16 products. oneDNN also counts CPUs with AVX-512 alone as able to
    make them, and emulates them there, at a sixth of the speed of float32."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return True
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _in_bfloat16(x: Tensor, weight: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == weight.dtype == torch.bfloat16
