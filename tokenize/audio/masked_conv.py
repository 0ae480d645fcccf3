"""Masked 1-D convolutions with the padding rules of the codecs.

A mask marks the signal inside the tensor. Every layer pads at the ends of the signal, not of the tensor: batch padding
then changes nothing, and a window gives the same result as a pass over the whole signal.

              kernel k, dilation d, stride s:            transposed, kernel 2 s:
              (k - 1) d + 1 - s samples of padding       s surplus samples are trimmed
    causal    all before the signal                      a fraction `trim_right` of them on the right, usually all
    centered  half after it, the odd one before          half on the right, the odd one on the left
    length    L / s                                      L * s; centered and `short`: an odd stride loses the last step

Source: EnCodec, arXiv:2210.13438, `encodec/modules/conv.py` (MIT): the rule above, and the reflection of signals
shorter than the padding (zeros are appended first).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

Padding = Literal["zeros", "reflect", "replicate"]
Norm = Literal["weight", "none"]


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
    ):
        super().__init__()
        total = (kernel - 1) * dilation + 1 - stride
        after = 0 if causal else total // 2
        self.left, self.right = total - after, after
        self.padding: Padding = padding
        self.up, self.down = 1, stride
        self.conv = normed(
            nn.Conv1d(inputs, outputs, kernel, stride, dilation=dilation, groups=groups, bias=bias), norm
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, inputs, L]; mask: [B, L], one contiguous run of True."""
        return self.conv(pad_signal(x, mask, self.left, self.right, self.padding))

    def needs(self, low: int, high: int, per_frame: int) -> tuple[int, int]:
        """First and last input step that output steps low..high depend on; a frame is input steps 0..per_frame-1."""
        low, high = low * self.down - self.left, high * self.down + self.down - 1 + self.right
        if self.padding == "reflect":  # reflection at the frame's end depends on steps on its other side
            low, high = min(low, 2 * (per_frame - 1) - high), max(high, -low)
        return low, high


class PaddedTranspose(nn.Module):
    """ConvTranspose1d of kernel 2 * stride, from [B, inputs, L] to [B, outputs, L * stride].

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
    ):
        super().__init__()
        after = math.ceil(trim_right * stride) if causal else stride // 2
        self.left, self.right = stride - after, after
        self.up, self.down = stride, 1
        self.lost = stride % 2 if short else 0
        """Steps missing at the signal's end."""
        self.conv = normed(nn.ConvTranspose1d(inputs, outputs, 2 * stride, stride, groups=groups, bias=bias), norm)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, inputs, L]; mask: [B, L]."""
        y = self.conv(x * mask[:, None])
        return y[..., self.left : y.shape[-1] - self.right]

    def needs(self, low: int, high: int, per_frame: int) -> tuple[int, int]:
        """See PaddedConv.needs."""
        return (low + self.left) // self.up - 1, (high + self.left) // self.up


class Pointwise(nn.Module):
    """Adapter for pointwise modules among layers that take a mask."""

    up = down = 1

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, channels, L]."""
        return self.inner(x)

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

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, channels, L]; mask: [B, L]."""
        h = x
        for layer in self.layers:
            h = layer(h, mask)
        return h + (x if self.shortcut is None else self.shortcut(x, mask))

    def needs(self, low: int, high: int, per_frame: int) -> tuple[int, int]:
        """See PaddedConv.needs."""
        inner = needs_of(self.layers, low, high, per_frame)
        return min(low, inner[0]), max(high, inner[1])


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
        """x: [B, T, r, C]; mask: [B, T], one contiguous run of True. Outputs of masked frames are meaningless."""
        signal = x.flatten(1, 2).transpose(1, 2)
        places, lost = self.places, 0
        for layer in self:
            signal = layer(signal, steps_of_frames(mask, places, lost))
            places, lost = places * int(layer.up) // int(layer.down), self._lost_after(layer, lost)  # pyright: ignore[reportArgumentType]
        return signal.transpose(1, 2).unflatten(1, (-1, places))


def steps_of_frames(mask: Tensor, places: int, lost: int = 0) -> Tensor:
    """Frame mask [B, T] -> mask of steps [B, T * places], without the last `lost` steps of the signal."""
    steps = mask.repeat_interleave(places, dim=1)
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


def pad_signal(x: Tensor, mask: Tensor, left: int, right: int, padding: Padding) -> Tensor:
    """Pad the signal of each row at its ends.

    Args:
        x: [B, C, L]. mask: [B, L], one contiguous run of True (or none).
    Returns:
        [B, C, left + L + right]: zero outside the signal, except the `left` samples before and `right` after it.
    """
    x = F.pad(x * mask[:, None], (left, right))
    if padding == "zeros" or not left + right:
        return x
    start, length = mask.int().argmax(dim=1, keepdim=True), mask.sum(dim=1, keepdim=True)  # [B, 1]
    before = torch.arange(-left, 0, device=x.device).expand(len(x), -1)
    place = torch.cat([before, length + torch.arange(right, device=x.device)], dim=1)  # relative to the signal's start
    if padding == "replicate":
        source = place.clamp_min(0).minimum((length - 1).clamp_min(0))
    else:
        last = length.clamp_min(max(left, right) + 1) - 1
        source = last - (last - place.abs()).abs()
    exists = (source < length)[:, None]
    first = (start + left)[:, None]
    values = x.gather(2, (first + source[:, None]).clamp_max(x.shape[2] - 1).expand(-1, x.shape[1], -1))
    return x.scatter(2, (first + place[:, None]).expand_as(values), values * exists)


def normed(layer: nn.Module, norm: Norm) -> nn.Module:
    """Apply weight normalization (arXiv:1602.07868) to a layer if `norm` is "weight"."""
    return parametrizations.weight_norm(layer) if norm == "weight" else layer


def fold_norms(net: nn.Module) -> None:
    """Fold all weight norms into plain weights, in place, as frozen networks store them."""
    for module in net.modules():
        if parametrize.is_parametrized(module, "weight"):
            # torch removes the property "weight" from the module's class, which copies of the module share.
            kind = type(module)
            own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
            module.__class__ = type(kind.__name__, kind.__bases__, own)  # type: ignore
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """State dict of a network with its weight norms folded; the network is unchanged."""
    state = net.state_dict()
    for name, module in net.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            state = {
                key: value for key, value in state.items() if not key.startswith(f"{name}.parametrizations.weight")
            }
            state[f"{name}.weight"] = getattr(module, "weight").detach()  # noqa: B009
    return state


@torch.no_grad()
def set_plain(net: nn.Module, name: str, value: Tensor) -> None:
    """Write one tensor of `plain_state` into the network, through the weight norm if the layer has one."""
    place, _, leaf = name.rpartition(".")
    module = net.get_submodule(place)
    if parametrize.is_parametrized(module, leaf):
        setattr(module, leaf, value)
    else:
        getattr(module, leaf).copy_(value)
