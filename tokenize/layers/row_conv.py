"""Convolutions of frozen networks on a CPU: matrix products over rows, one row [C] per step of the signal.

With channels last, what a convolution multiplies is a slice of its input, so nothing is gathered or transposed first:

    stride 1            y = x[0 : L] W_0 + x[d : L + d] W_1 + ...                     a product per tap, dilation d
    stride s            the same, with s steps as one row of s C channels, which is a view of the same memory
    transposed, 2 s     y[t] = x[t] W_0 + x[t - 1] W_1, a row of s steps at once
    transposed, s       y[t] = x[t] W

A causal convolution can continue after earlier steps: `Carried` holds what it needs of them. So can one that looks
ahead, if its results come late (`CarriedLate`). The weights keep their
shape and lie in memory in the order in which the products read them (`lay_out`). The results equal those of torch's
convolutions up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .row_products import ALIGNMENT, add_product

FEW_INPUTS = 16
"""With fewer channels, all taps are gathered into one product: each product reads and writes all results."""

Activation = Callable[[Tensor, Tensor], Tensor]
"""activation(x, out): writes f(x) [L, C] to `out`, which may be x, and returns it."""


@dataclass(frozen=True)
class Span:
    """Where the signal is among the steps of a window or block: steps start .. end - 1."""

    start: int
    end: int
    wait: int = 0
    """Of a convolution with a stride whose input is late: steps at the end that it leaves to the next block, so that
    its results are late by a whole number of theirs."""

    def later(self, steps: int) -> Span:
        """As many steps later."""
        return Span(self.start + steps, self.end + steps)


class Carried:
    """What the causal convolutions of a stack keep between two calls, in the order in which they run.

    A call has one block of steps, of which only those of its span are new, or several blocks of new ones; the signal
    may end in the last one. A convolution with `left` steps of padding keeps its padded input, from `left` steps before
    the block up to the span's end; once the block is complete, the last `left` steps.
    """

    def __init__(self, before: Sequence[Tensor] | None, blocks: int):
        """before: `after` of the call before; None: the signal starts here. blocks: of this call."""
        self.first = before is None
        self.blocks = blocks
        self.after: list[Tensor] = []
        self._before = iter(before or ())

    def pad(self, x: Tensor, span: Span, left: int, padding: str, stride: int, before: Activation | None) -> Tensor:
        """`pad_rows` of a convolution's steps x, after the steps that it kept."""
        if before is not None and (span != Span(0, len(x)) or left * x.shape[1] * x.element_size() % ALIGNMENT):
            # Kernels may round differently for the last elements, which others would be of a part of the block, and for
            # memory that is not aligned.
            x, before = before(x, torch.empty_like(x)), None
        past = None if self.first else next(self._before)
        padded = pad_rows(x, span, left, 0, padding, stride, before, past)
        kept = padded[len(x) :] if span.end == len(x) else padded[: left + span.end]
        self.after.append(kept.clone())
        return padded

    def late(self, x: Tensor, steps: int) -> Tensor:
        """x, as many steps late as the results of layers that look ahead so far; there are none here."""
        assert steps == 0, steps
        return x

    def each_block(self, activation: Activation) -> Activation:
        """The activation of one block after the other, so that it does not depend on their number."""
        if self.blocks == 1:
            return activation

        def apply(x: Tensor, out: Tensor) -> Tensor:
            rows = len(x) // self.blocks
            for block, result in zip(x.split(rows), out.split(rows), strict=True):
                activation(block, result)
            return out

        return apply


class CarriedLate(Carried):
    """As `Carried`, for convolutions that look ahead, with zeros around the signal.

    A result comes with the last step that it is made of, so later layers have the signal later in their blocks. A span
    says where it is by itself: it starts in this block, or before or after it, and ends likewise. In blocks before the
    signal's first step and after its last one, what is not the signal counts as zero.

        input of a convolution of kernel 3      | s0 s1 s2 s3 | s4 s5 s6 s7 |
        its results, one step late              | .  y0 y1 y2 | y3 y4 y5 y6 |
    """

    def __init__(self, before: Sequence[Tensor] | None):
        super().__init__(before, 1)

    def pad(self, x: Tensor, span: Span, left: int, padding: str, stride: int, before: Activation | None) -> Tensor:
        """See Carried.pad."""
        assert padding == "zeros", padding
        start, end = (min(max(place, 0), len(x)) for place in (span.start, span.end))
        padded = x.new_empty(left + len(x), x.shape[1])
        padded[:left] = 0 if self.first else next(self._before)
        padded[left : left + start] = padded[left + end :] = 0
        inside = padded[left + start : left + end]
        inside.copy_(x[start:end]) if before is None else before(x[start:end], inside)
        self.after.append(padded[len(x) :].clone())
        return padded

    def late(self, x: Tensor, steps: int) -> Tensor:
        """See Carried.late."""
        if steps == 0:
            return x
        joined = torch.cat([x.new_zeros(steps, x.shape[1]) if self.first else next(self._before), x])
        self.after.append(joined[len(x) :].clone())
        return joined[: len(x)]


@torch.no_grad()
def lay_out(layer: nn.Linear | nn.Conv1d | nn.ConvTranspose1d) -> None:
    """Reorder the weight of a layer in memory, in place, as products of rows read it; its shape and values are
    unchanged. A depthwise transposed convolution has the order of a convolution."""
    if parametrize.is_parametrized(layer):
        return
    if isinstance(layer, nn.Linear):  # [outputs, inputs], in memory [inputs, outputs]
        layer.weight.data = layer.weight.T.contiguous().T
    elif isinstance(layer, nn.Conv1d) or layer.groups > 1:  # [outputs, inputs, k], in memory [k, inputs, outputs]
        outputs, inputs, taps = layer.weight.shape
        turned = layer.weight.reshape(outputs, -1).T.contiguous()  # one permutation takes three times as long as two
        layer.weight.data = turned.view(inputs, taps, outputs).transpose(0, 1).contiguous().permute(2, 1, 0)
    else:  # ConvTranspose1d: [inputs, outputs, k], in memory [inputs, k, outputs]
        layer.weight.data = layer.weight.permute(0, 2, 1).contiguous().permute(0, 2, 1)


def fits_rows(layer: nn.Conv1d | nn.ConvTranspose1d) -> bool:
    """Whether the functions here compute a layer: one group (or, transposed, one per channel), and a kernel of whole
    strides."""
    stride = layer.stride[0]
    if isinstance(layer, nn.ConvTranspose1d):
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        kernels = (2 * stride, stride) if layer.groups == 1 else (2 * stride,)
        return (layer.groups == 1 or depthwise) and layer.kernel_size[0] in kernels
    return layer.groups == 1 and (stride == 1 or (layer.kernel_size[0] % stride == 0 and layer.dilation[0] == 1))


def convolve(x: Tensor, layer: nn.Conv1d, blocks: int = 1, onto: Tensor | None = None) -> Tensor:
    """x: [L, inputs], padded; L a multiple of the stride -> [(L - reach) / stride, outputs]; as many blocks of rows.
    onto: is added to the result."""
    stride, dilation = layer.stride[0], layer.dilation[0]
    taps = layer.kernel_size[0] // stride
    weights = layer.weight.permute(2, 1, 0).reshape(taps, -1, layer.out_channels)
    rows = x.reshape(-1, stride * x.shape[1])
    count = len(rows) - (taps - 1) * dilation
    if onto is None:
        y = _biased(x, layer.bias, count, layer.out_channels)
    else:
        y = onto.clone() if layer.bias is None else onto + layer.bias
    width = rows.shape[1]
    if taps > 1 and width < FEW_INPUTS:
        gathered = rows.as_strided((count, taps, width), (width, dilation * width, 1)).flatten(1)
        add_product(y, gathered, weights.flatten(0, 1), blocks)
        return y
    for tap in range(taps):
        add_product(y, rows[tap * dilation : tap * dilation + count], weights[tap], blocks)
    return y


def convolve_transposed(x: Tensor, layer: nn.ConvTranspose1d, blocks: int = 1) -> Tensor:
    """x: [1 + L, inputs], of which the first step is before the signal or zero -> [L * stride, outputs]; L steps in as
    many blocks. If the kernel is the stride: x: [L, inputs]."""
    stride, outputs = layer.stride[0], layer.out_channels
    if layer.kernel_size[0] == stride:
        y = _biased(x, layer.bias, len(x) * stride, outputs)
        weights = layer.weight.permute(0, 2, 1).reshape(layer.in_channels, stride * outputs)
        add_product(y.view(-1, stride * outputs), x.contiguous(), weights, blocks)
        return y
    now, before = x[1:], x[:-1]
    y = _biased(x, layer.bias, len(now) * stride, outputs)
    if layer.groups > 1:  # depthwise: [C, 1, 2 s] -> [2, s, C]
        for part, weights in zip((now, before), layer.weight[:, 0].T.unflatten(0, (2, stride)), strict=True):
            y.view(-1, stride, outputs).add_(part[:, None] * weights)
        return y
    both = layer.weight.permute(0, 2, 1).reshape(layer.in_channels, 2 * stride * outputs).chunk(2, dim=1)
    for part, weights in zip((now, before), both, strict=True):
        add_product(y.view(-1, stride * outputs), part, weights, blocks)
    return y


def _biased(x: Tensor, bias: Tensor | None, count: int, outputs: int) -> Tensor:
    """[count, outputs], the bias or zeros."""
    return x.new_zeros(count, outputs) if bias is None else x.new_empty(count, outputs).copy_(bias)


def elu(x: Tensor, out: Tensor) -> Tensor:
    """ELU of alpha 1, written to `out`, which may be x. torch's takes twice as long, because it computes exp(x) - 1 for
    x near 0 to a higher relative precision than the sums that follow have."""
    return torch.maximum(x, x.clamp_max(0).exp_().sub_(1), out=out)


def pad_rows(
    x: Tensor,
    span: Span,
    left: int,
    right: int,
    padding: str,
    stride: int = 1,
    before: Activation | None = None,
    past: Tensor | None = None,
) -> Tensor:
    """`pad_signal` (masked_conv.py) of one signal with channels last: [L, C] -> a copy [left + L + right, C].

    before: applied to the signal on the way. past: [left + span.start, C], the steps before the span; the signal
    starts before them, so that nothing is padded on the left.
    """
    start, length = left + span.start, span.end - span.start
    padded = x.new_empty(left + len(x) + right, x.shape[1])
    padded[:start] = 0 if past is None else past
    inside = padded[start : start + length]
    inside.copy_(x[span.start : span.end]) if before is None else before(x[span.start : span.end], inside)
    padded[start + length :] = 0
    after = right + -length % stride
    if past is not None:
        start, length, left = 0, start + length, 0
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
