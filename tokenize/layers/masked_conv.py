"""Masked 1-D convolutions with the padding rules of the codecs.

A mask marks the signal inside the tensor. Every layer pads at the ends of the signal, not of the tensor: batch padding
then changes nothing, and a window gives the same result as a pass over the whole signal.

              kernel k, dilation d, stride s:            transposed, kernel 2 s:
              (k - 1) d + 1 - s samples of padding       s surplus samples are trimmed
    causal    all before the signal                      a fraction `trim_right` of them on the right, usually all
    centered  half after it, the odd one before          half on the right, the odd one on the left
    length    L / s                                      L * s; centered and `short`: an odd stride loses the last step
    without overlap: the kernel of a transposed one is s, and there is no surplus

A mask of frames [B, T] ends the signal at a frame's end. A mask of samples [B, T, hop] ends it inside a frame: a layer
whose input ends between two strides then pads what completes the last one, and a step at a lower rate holds signal if
its first sample does.

Source: EnCodec, arXiv:2210.13438, `encodec/modules/conv.py` (MIT): the rules above, and the reflection of signals
shorter than the padding (zeros are appended first).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .row_conv import (
    Activation,
    Carried,
    CarriedLate,
    Span,
    convolve,
    convolve_transposed,
    elu,
    fits_rows,
    lay_out,
    pad_rows,
)
from .weight_norm import normed

Padding = Literal["zeros", "reflect", "replicate"]
Norm = Literal["weight", "time_group", "none"]


class PaddedConv(nn.Module):
    """Conv1d from [B, inputs, L] to [B, outputs, L / stride]; L is a multiple of the stride."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = False,
        padding: Padding = "zeros",
        norm: Norm = "none",
        bias: bool = True,
        groups: int = 1,
        ragged: bool = False,
    ):
        """ragged: the mask may end the signal inside a frame."""
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        total = (kernel - 1) * dilation + 1 - stride
        after = 0 if causal else total // 2
        self.left, self.right = total - after, after
        self.padding: Padding = padding
        self.up, self.down = 1, stride
        self.ragged = ragged
        self.conv = normed(
            nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, groups=groups, bias=bias), norm
        )
        self.norm = SignalNorm(outputs) if norm == "time_group" else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, inputs, L]; mask: [B, L], one contiguous run of True."""
        y = self.conv(pad_signal(x, mask, self.left, self.right, self.padding, self.down if self.ragged else 1))
        return y if self.norm is None else self.norm(y, mask[:, :: self.down])

    def rows(
        self,
        x: Tensor,
        span: Span,
        before: Activation | None = None,
        carried: Carried | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """As `forward` of one frozen signal with channels last, x: [L, inputs]; `before` is applied to x first.
        carried: x is a block of steps of a longer signal; needs `carries`. onto: is added to the result."""
        if self.norm is not None or not fits_rows(self.conv):  # pyright: ignore
            assert carried is None
            found = _rows_by_forward(self, activate(x, before), span)
            return found if onto is None else found + onto
        blocks = 1 if carried is None else carried.blocks
        if self.conv.kernel_size[0] == 1:  # pyright: ignore
            return convolve(activate(x, before), self.conv, blocks, onto)  # pyright: ignore
        stride = self.down if self.ragged else 1
        if carried is not None:
            padded = carried.pad(x, span, self.left + self.right + span.wait, self.padding, stride, before)
            padded = padded[: len(padded) - span.wait]
        else:
            padded = pad_rows(x, span, self.left, self.right, self.padding, stride, before)
        return convolve(padded, self.conv, blocks, onto)  # pyright: ignore

    def carries(self, steps: int) -> bool:
        """Whether the layer can continue after earlier steps, the first call having at least `steps` of them."""
        fits = self.norm is None and fits_rows(self.conv)  # pyright: ignore
        if self.padding == "zeros" or self.conv.kernel_size[0] == 1:  # pyright: ignore
            return fits
        if self.padding == "reflect":
            fits = fits and steps > self.left and (not self.ragged or self.left >= self.down - 1)
        return fits and self.right == 0

    def late(self, steps: int) -> int:
        """Steps by which results are late that come with the last step they are made of, after an input that is."""
        return -(-(steps + self.right) // self.down)

    def needs(self, low: int, high: int, per_frame: int) -> tuple[int, int]:
        """First and last input step that output steps low..high depend on; a frame is input steps 0..per_frame-1."""
        low, high = low * self.down - self.left, high * self.down + self.down - 1 + self.right
        if self.padding == "reflect":  # reflection at the frame's end depends on steps on its other side
            low, high = min(low, 2 * (per_frame - 1) - high, *([-high] if self.ragged else [])), max(high, -low)
        return low, high


class PaddedTranspose(nn.Module):
    """ConvTranspose1d of kernel 2 * stride, or without overlap stride, from [B, inputs, L] to [B, outputs, L * stride].

    With `short` and an odd stride the last step is surplus: it is not part of the signal, whose mask ends before it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        causal: bool = False,
        trim_right: float = 1.0,
        norm: Norm = "none",
        bias: bool = True,
        groups: int = 1,
        short: bool = False,
        overlap: bool = True,
    ):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        surplus = stride if overlap else 0
        after = math.ceil(trim_right * surplus) if causal else surplus // 2
        self.left, self.right = surplus - after, after
        self.up, self.down = stride, 1
        self.lost = stride % 2 if short else 0
        """Steps missing at the signal's end."""
        self.conv = normed(
            nn.ConvTranspose1d(inputs, outputs, stride + surplus, stride, groups=groups, bias=bias), norm
        )
        self.norm = SignalNorm(outputs) if norm == "time_group" else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, inputs, L]; mask: [B, L]."""
        y = self.conv(x * mask[:, None])
        if self.norm is not None:  # its statistics include the surplus, one stride after the signal's end
            reached = F.pad(mask, (0, 1)) | F.pad(mask, (1, 0))
            y = self.norm(y, reached.repeat_interleave(self.up, dim=1))
        return y[..., self.left : y.shape[-1] - self.right]

    def rows(self, x: Tensor, span: Span, before: Activation | None = None, carried: Carried | None = None) -> Tensor:
        """See PaddedConv.rows."""
        if self.norm is not None or not fits_rows(self.conv):  # pyright: ignore
            assert carried is None
            return _rows_by_forward(self, activate(x, before), span)
        if self.left == self.right == 0:
            return convolve_transposed(activate(x, before), self.conv, 1 if carried is None else carried.blocks)  # pyright: ignore
        if carried is not None:
            return convolve_transposed(carried.pad(x, span, 1, "zeros", 1, before), self.conv, carried.blocks)  # pyright: ignore
        y = convolve_transposed(pad_rows(x, span, 1, 1, "zeros", before=before), self.conv)  # pyright: ignore
        return y[self.left : len(y) - self.right]

    def carries(self, steps: int) -> bool:
        """See PaddedConv.carries."""
        return self.norm is None and fits_rows(self.conv)  # pyright: ignore

    def late(self, steps: int) -> int:
        """See PaddedConv.late."""
        return steps * self.up + self.left

    def needs(self, low: int, high: int, per_frame: int) -> tuple[int, int]:
        """See PaddedConv.needs."""
        reach = 1 if self.left or self.right else 0
        return (low + self.left) // self.up - reach, (high + self.left) // self.up


class SignalNorm(nn.GroupNorm):
    """Group norm with one group over all channels and steps of the signal (`time_group_norm` of EnCodec at 48 kHz).

    A result depends on the whole signal, so a tokenizer with it needs `segments`.
    """

    def __init__(self, channels: int):
        super().__init__(1, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x: [B, C, L]; mask: [B, L] bool, True on the signal."""
        inside = mask[:, None]
        count = (inside.sum(dim=(1, 2), keepdim=True) * x.shape[1]).clamp_min(1)
        centered = x - torch.where(inside, x, 0.0).sum(dim=(1, 2), keepdim=True) / count
        variance = torch.where(inside, centered, 0.0).square().sum(dim=(1, 2), keepdim=True) / count
        return centered * (variance + self.eps).rsqrt() * self.weight[:, None] + self.bias[:, None]


class Pointwise(nn.Module):
    """Adapter for pointwise modules among layers that take a mask."""

    up = down = 1

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, channels, L]."""
        return self.inner(x)

    def carries(self, steps: int) -> bool:
        """See PaddedConv.carries."""
        return True

    def late(self, steps: int) -> int:
        """See PaddedConv.late."""
        return steps

    def activation(self) -> Activation:
        """As `forward`, of frozen rows [L, channels]."""
        if isinstance(self.inner, nn.ELU):
            alpha = self.inner.alpha
            return elu if alpha == 1 else lambda x, out: torch.ops.aten.elu.out(x, alpha, out=out)
        if isinstance(self.inner, nn.Tanh):
            return lambda x, out: torch.tanh(x, out=out)
        if isinstance(self.inner, nn.Hardtanh):
            low, high = self.inner.min_val, self.inner.max_val
            return lambda x, out: torch.clamp(x, low, high, out=out)
        return self.inner.rows  # pyright: ignore[reportReturnType]

    def needs(self, low: int, high: int, per_frame: int) -> tuple[int, int]:
        """See PaddedConv.needs."""
        return low, high


class Residual(nn.Module):
    """shortcut(x) + layers(x), size unchanged; without a shortcut x + layers(x)."""

    up = down = 1

    def __init__(self, layers: list[nn.Module], shortcut: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.shortcut = shortcut
        self.inputs = self.outputs = next(int(layer.inputs) for layer in layers if hasattr(layer, "inputs"))  # pyright: ignore

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, channels, L]; mask: [B, L]."""
        h = x
        for layer in self.layers:
            h = layer(h, mask)
        return h + (x if self.shortcut is None else self.shortcut(x, mask))

    def rows(self, x: Tensor, span: Span, before: Activation | None = None, carried: Carried | None = None) -> Tensor:
        """See PaddedConv.rows."""
        x = activate(x, before)
        onto = x if self.shortcut is None else self.shortcut.rows(x, span, None, carried)  # pyright: ignore[reportCallIssue]
        *inner, last = self.layers
        spans = [span] * len(self.layers)
        if carried is not None:
            spans = [span.later(self._late_before(number)) for number in range(len(self.layers))]
            onto = carried.late(onto, self.late(0))
        h = run_rows(inner, x, spans[:-1], carried)
        if isinstance(last, PaddedConv):
            return last.rows(h, spans[-1], None, carried, onto)
        return onto + run_rows([last], h, spans[-1:], carried)

    def carries(self, steps: int) -> bool:
        """See PaddedConv.carries."""
        inside = self.layers if self.shortcut is None else [*self.layers, self.shortcut]
        together = self.shortcut is None or self.shortcut.late(0) == 0  # pyright: ignore[reportCallIssue]
        return together and all(layer.carries(steps) for layer in inside)  # pyright: ignore[reportCallIssue]

    def late(self, steps: int) -> int:
        """See PaddedConv.late."""
        return steps + self._late_before(len(self.layers))

    def _late_before(self, number: int) -> int:
        """Steps by which the input of a layer is later than the first one's."""
        return sum(layer.late(0) for layer in self.layers[:number])  # pyright: ignore[reportCallIssue]

    def needs(self, low: int, high: int, per_frame: int) -> tuple[int, int]:
        """See PaddedConv.needs."""
        inner = needs_of(self.layers, low, high, per_frame)
        return min(low, inner[0]), max(high, inner[1])


class LateState(NamedTuple):
    """Of a signal in `ConvStack.extend_late` between two calls."""

    frames: int
    """So far."""
    end: int | None
    """Parts of frames in the signal; None: not known yet."""
    kept: list[Tensor]
    """See Carried.after."""


ENDLESS = 1 << 60
"""Steps of a signal that has not ended."""


class ConvStack(nn.ModuleList):
    """Masked layers applied to frames: [B, T, r, C] -> [B, T, R, outputs], with r and R steps per frame."""

    def __init__(self, layers: list[nn.Module], places: int):
        """`places` is r."""
        super().__init__(layers)
        self.places = places
        low, high = needs_of(layers, 0, self._places_after() - 1, places)
        self.reach_back, self.reach_ahead = max(0, -(low // places)), max(0, high // places)
        """Number of frames before and after t that output frame t depends on."""
        self.lost = 0
        """Steps missing at the signal's end in the output."""
        self.frozen = self.laid_out = False
        for layer in self:
            self.lost = self._lost_after(layer, self.lost)

    def _places_after(self) -> int:
        places = self.places
        for layer in self:
            places = places * int(layer.up) // int(layer.down)  # pyright: ignore[reportArgumentType]
        return places

    @staticmethod
    def _lost_after(layer: nn.Module, lost: int) -> int:
        return lost * int(layer.up) + getattr(layer, "lost", 0)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, r, C]; mask: [B, T] or [B, T, hop], one contiguous run of True. Other outputs are meaningless."""
        self.lay_out()
        if self.uses_rows(x):
            signal = run_rows(self, x[0].flatten(0, 1), self.spans(mask))
            return signal[None].unflatten(1, (x.shape[1], -1))
        signal = x.flatten(1, 2).transpose(1, 2)
        places, lost = self.places, 0
        for layer in self:
            signal = layer(signal, step_mask(mask, places, lost))
            places, lost = places * int(layer.up) // int(layer.down), self._lost_after(layer, lost)  # pyright: ignore[reportArgumentType]
        return signal.transpose(1, 2).unflatten(1, (-1, places))

    def extend_signal(
        self, x: Tensor, mask: Tensor, state: list[Tensor] | None, blocks: int = 1
    ) -> tuple[Tensor, list[Tensor]]:
        """As `forward` of one frozen signal [1, T, r, C], after earlier frames; needs `carries`.

        x: blocks of frames, all of equal size in all calls; the mask marks the new frames. If it ends before a block
        does, the next call has the same block with the frames that follow, or the signal ends. state: of the call
        before; None: the signal starts.
        """
        self.lay_out()
        carried = Carried(state, blocks)
        signal = run_rows(self, x[0].flatten(0, 1).contiguous(), self.spans(mask), carried)
        return signal[None].unflatten(1, (x.shape[1], -1)), carried.after

    def extend_late(self, x: Tensor, mask: Tensor, state: LateState | None) -> tuple[Tensor, LateState]:
        """As `extend_signal` of layers that look ahead: results come `late` frames late, so the first ones mean
        nothing. All frames are new, until the signal ends; later calls have none, and return the last results.

        x: a block of frames, of equal size in all calls.
        """
        self.lay_out()
        flat, per_frame = mask.flatten(), mask.shape[2] if mask.dim() == 3 else 1
        before, end, kept = (0, None, None) if state is None else state
        count = int(flat.sum())
        if end is None and count < len(flat):
            end = before * per_frame + count
        carried = CarriedLate(kept)
        spans, late = self._late_spans(before, end, per_frame)
        signal = run_rows(self, x[0].flatten(0, 1).contiguous(), spans, carried)
        signal = carried.late(signal, self.late * self._places_after() - late)
        state = LateState(before + x.shape[1], end, carried.after)
        return signal[None].unflatten(1, (x.shape[1], -1)), state

    def _late_spans(self, before: int, end: int | None, per_frame: int) -> tuple[list[Span], int]:
        """Of the input of each layer, in a block after `before` frames of a signal of `end` parts of frames; and the
        steps by which the results are late."""
        places, lost, late, found = self.places, 0, 0, []
        for layer in self:
            length = ENDLESS if end is None else max(0, -(-end * places // per_frame) - lost)
            after = int(layer.late(late))  # pyright: ignore[reportCallIssue]
            wait = after * layer.down - late - layer.right if isinstance(layer, PaddedConv) else 0
            found.append(Span(late - before * places, late - before * places + length, wait))
            late, lost = after, self._lost_after(layer, lost)
            places = places * int(layer.up) // int(layer.down)  # pyright: ignore[reportArgumentType]
        return found, late

    @cached_property
    def late(self) -> int:
        """Frames by which the results of `extend_late` are late; 0: no layer looks ahead."""
        return -(-self._late_spans(0, None, 1)[1] // self._places_after())

    def carries(self, frames: int) -> bool:
        """Whether `extend_signal` works, or `extend_late` if layers look ahead; if the first call has at least `frames`
        new frames or is the last."""
        places, padded = self.places, False
        for layer in self:
            if not layer.carries(frames * places):  # pyright: ignore[reportCallIssue]
                return False
            places = places * int(layer.up) // int(layer.down)  # pyright: ignore[reportArgumentType]
        for module in self.modules():
            if isinstance(module, PaddedConv) and module.conv.kernel_size[0] > 1:  # pyright: ignore
                padded = padded or module.padding != "zeros"
        return not padded or self.late == 0

    def part(self, first: int, end: int, places: int) -> ConvStack:
        """The layers first .. end - 1 as a stack of their own, which shares them; `places` are its steps per frame."""
        part = ConvStack(list(self)[first:end], places)
        part.frozen = self.frozen
        return part

    def freeze(self) -> None:
        """Use `rows` on a CPU from now on; the weights must not be trained afterwards."""
        self.frozen = True

    def lay_out(self) -> None:
        """Reorder the weights for `rows`, at the first use: who decodes alone does not wait for the encoder's."""
        if self.laid_out or not self.frozen:
            return
        for module in self.modules():
            if isinstance(module, PaddedConv | PaddedTranspose) and module.norm is None and fits_rows(module.conv):  # pyright: ignore
                lay_out(module.conv)  # pyright: ignore[reportArgumentType]
            elif isinstance(module, nn.Linear):
                lay_out(module)
        self.laid_out = True

    def uses_rows(self, x: Tensor) -> bool:
        """Whether the layers run by `rows`: frozen, on a CPU, and x [B, ...] is one signal without a gradient."""
        one = len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32
        return self.frozen and one and not torch.is_grad_enabled()

    def spans(self, mask: Tensor) -> list[Span]:
        """Where the signal is in the input of each layer, by the mask [1, T] or [1, T, hop]; see `step_mask`."""
        flat, per_frame = mask.flatten(), mask.shape[2] if mask.dim() == 3 else 1
        start = int(flat.int().argmax())
        end = start + int(flat.sum())
        places, lost, found = self.places, 0, []
        for layer in self:
            first = start * places // per_frame
            found.append(Span(first, max(first, -(-end * places // per_frame) - lost)))
            places, lost = places * int(layer.up) // int(layer.down), self._lost_after(layer, lost)  # pyright: ignore[reportArgumentType]
        return found


def run_rows(layers: Iterable[nn.Module], x: Tensor, spans: Sequence[Span], carried: Carried | None = None) -> Tensor:
    """Apply layers to one frozen signal with channels last, [L, C], which is not changed; spans: one for each layer.
    carried: x is a block of steps of a longer signal.

    Activations work in place on the result of the layer before, or write the padded copy that the next layer makes.
    """
    owned, before = False, None
    for layer, span in zip(layers, spans, strict=True):
        if isinstance(layer, Pointwise):
            assert before is None, "two activations in a row"
            before = layer.activation() if carried is None else carried.each_block(layer.activation())
            if owned:
                x, before = before(x, x), None
        else:
            x, owned, before = layer.rows(x, span, before, carried), True, None  # pyright: ignore[reportCallIssue]
    return activate(x, before)


def activate(x: Tensor, activation: Activation | None) -> Tensor:
    """The activation of x, which is not changed; None: x itself."""
    return x if activation is None else activation(x, torch.empty_like(x))


def _rows_by_forward(layer: nn.Module, x: Tensor, span: Span) -> Tensor:
    """`layer.rows` of a layer that has no such form."""
    mask = torch.zeros(1, len(x), dtype=torch.bool, device=x.device)
    mask[:, span.start : span.end] = True
    return layer(x.T[None], mask)[0].T.contiguous()


def step_mask(mask: Tensor, places: int, lost: int = 0) -> Tensor:
    """Mask of frames [B, T] or of their samples [B, T, hop] -> mask of steps [B, T * places], without the last `lost`
    steps of the signal."""
    if mask.dim() == 2:
        steps = mask.repeat_interleave(places, dim=1)
    else:
        steps = mask[..., :: mask.shape[2] // places].flatten(1)
    # A window's last frame looks like the signal's end. No result reads these steps there: they need later frames.
    return steps & F.pad(steps[:, lost:], (0, lost)) if lost else steps


def needs_of(layers, low: int, high: int, places: int) -> tuple[int, int]:
    """First and last input step that output steps low..high of a chain depend on; `places` is input steps per frame."""
    counts = []
    for layer in layers:
        counts.append(places)
        places = places * layer.up // layer.down
    for layer, count in zip(reversed(layers), reversed(counts), strict=True):
        low, high = layer.needs(low, high, count)
    return low, high


def pad_signal(x: Tensor, mask: Tensor, left: int, right: int, padding: Padding, stride: int = 1) -> Tensor:
    """Pad the signal of each row at its ends.

    Args:
        x: [B, C, L]. mask: [B, L], one contiguous run of True (or none).
        stride: of the convolution that follows; a signal whose length is no multiple of it is padded further on the
            right, until it is one.
    Returns:
        [B, C, left + L + right]: zero outside the signal, except the `left` samples before it and after it the `right`
        samples and those that complete the stride.
    """
    if padding == "zeros" or not left + right:
        return F.pad(x * mask[:, None], (left, right))
    x = F.pad(x * mask[:, None], (left, right + stride - 1))
    start, length = mask.int().argmax(dim=1, keepdim=True), mask.sum(dim=1, keepdim=True)  # [B, 1]
    after = right + -length % stride
    before = torch.arange(-left, 0, device=x.device).expand(len(x), -1)
    behind = length + torch.arange(right + stride - 1, device=x.device)
    place = torch.cat([before, behind], dim=1)  # relative to the signal's start
    if padding == "replicate":
        source = place.clamp_min(0).minimum((length - 1).clamp_min(0))
    else:
        last = length.maximum(after.clamp_min(left) + 1) - 1
        source = last - (last - place.abs()).abs()
    exists = ((source < length) & (place < length + after))[:, None]
    first = (start + left)[:, None]
    values = x.gather(2, (first + source[:, None]).clamp(0, x.shape[2] - 1).expand(-1, x.shape[1], -1))
    x = x.scatter(2, (first + place[:, None]).expand_as(values), values * exists)
    return x[..., : x.shape[2] - (stride - 1)]
