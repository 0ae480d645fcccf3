"""Convolutions of frozen networks on a CPU: matrix products over rows, one row [C] per step of the signal.

With channels last, what a convolution multiplies is a slice of its input, so nothing is gathered or transposed first:

    stride 1            y = x[0 : L] W_0 + x[d : L + d] W_1 + ...                     a product per tap, dilation d
    stride s            the same, with s steps as one row of s C channels, which is a view of the same memory
    transposed, 2 s     y[t] = x[t] W_0 + x[t - 1] W_1, a row of s steps at once

The weights keep their shape and lie in memory in the order in which the products read them (`lay_out`). The results
equal those of torch's convolutions up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Activation = Callable[[Tensor, Tensor], Tensor]
"""activation(x, out): writes f(x) [L, C] to `out`, which may be x, and returns it."""


@dataclass(frozen=True)
class Span:
    """Where the signal is among the steps of a window: steps start .. end - 1."""

    start: int
    end: int


@torch.no_grad()
def lay_out(layer: nn.Module) -> None:
    """Reorder the weight of a convolution in memory, in place; its shape and values are unchanged."""
    if parametrize.is_parametrized(layer):
        return
    if isinstance(layer, nn.Conv1d):  # [outputs, inputs, k], in memory [k, inputs, outputs]
        layer.weight.data = layer.weight.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    elif isinstance(layer, nn.ConvTranspose1d):  # [inputs, outputs, k], in memory [inputs, k, outputs]
        layer.weight.data = layer.weight.permute(0, 2, 1).contiguous().permute(0, 2, 1)


def fits_rows(layer: nn.Conv1d | nn.ConvTranspose1d) -> bool:
    """Whether the functions here compute a layer: one group, and a kernel of whole strides."""
    stride = layer.stride[0]
    if isinstance(layer, nn.ConvTranspose1d):
        return layer.groups == 1 and layer.kernel_size[0] == 2 * stride
    return layer.groups == 1 and (stride == 1 or (layer.kernel_size[0] % stride == 0 and layer.dilation[0] == 1))


def convolve(x: Tensor, layer: nn.Conv1d) -> Tensor:
    """x: [L, inputs], padded; L a multiple of the stride -> [(L - reach) / stride, outputs]."""
    stride, dilation = layer.stride[0], layer.dilation[0]
    taps = layer.kernel_size[0] // stride
    weights = layer.weight.permute(2, 1, 0).reshape(taps, -1, layer.out_channels)
    rows = x.reshape(-1, stride * x.shape[1])
    count = len(rows) - (taps - 1) * dilation
    first = rows[:count]
    y = first @ weights[0] if layer.bias is None else torch.addmm(layer.bias, first, weights[0])
    for tap in range(1, taps):
        y.addmm_(rows[tap * dilation : tap * dilation + count], weights[tap])
    return y


def convolve_transposed(x: Tensor, layer: nn.ConvTranspose1d) -> Tensor:
    """x: [L, inputs] -> [(L + 1) * stride, outputs]."""
    count, size = len(x), layer.stride[0] * layer.out_channels
    weights = layer.weight.permute(0, 2, 1).reshape(layer.in_channels, 2 * size)
    y = x.new_zeros(count + 1, size)
    if layer.bias is not None:
        y.view(-1, layer.out_channels).copy_(layer.bias.expand(layer.out_channels))
    y[:count].addmm_(x, weights[:, :size])
    y[1:].addmm_(x, weights[:, size:])
    return y.view(-1, layer.out_channels)


def pad_rows(
    x: Tensor, span: Span, left: int, right: int, padding: str, stride: int = 1, before: Activation | None = None
) -> Tensor:
    """`pad_signal` (audio/masked_conv.py) of one signal with channels last: [L, C] -> a copy [left + L + right, C].
    `before` is applied to the signal on the way."""
    start, length = left + span.start, span.end - span.start
    padded = x.new_empty(left + len(x) + right, x.shape[1])
    padded[:start] = 0
    inside = padded[start : start + length]
    inside.copy_(x[span.start : span.end]) if before is None else before(x[span.start : span.end], inside)
    padded[start + length :] = 0
    after = right + -length % stride
    if padding == "zeros" or length == 0 or not left + after:
        return padded
    last = max(length, max(after, left) + 1) - 1
    sources, targets = [], []
    for place in (*range(-left, 0), *range(length, min(length + after, len(padded) - start))):
        source = min(max(place, 0), length - 1) if padding == "replicate" else last - abs(last - abs(place))
        if source < length:  # reflections of a signal shorter than the padding are zero beyond its end
            sources.append(start + source)
            targets.append(start + place)
    padded[targets] = padded[sources]
    return padded
