"""Audio decoder `code2wav`: a causal transformer at the frame rate, then transposed convolutions up to samples.

    latents ──► conv3 ──► transformer with sliding attention ──► per ratio: transposed conv, ConvNeXt block
            ──► conv7 ──► per stride: SnakeBeta, transposed conv that halves the channels, units of dilation 1, 3, 9
            ──► SnakeBeta, conv7, limit to [-1, 1]

Nothing looks ahead. It is a decoder alone, for any encoder.
Source: Qwen3-TTS, arXiv:2601.15621, and its package qwen-tts (Apache-2.0), `core/tokenizer_12hz`; its name as in
Qwen2.5-Omni, arXiv:2503.20215.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, ConfigError, LayerCount
from ..layers.masked_conv import (
    ConvStack,
    Norm,
    PaddedConv,
    PaddedTranspose,
    Pointwise,
    Residual,
    activate,
)
from ..layers.row_conv import Activation, Carried, Span, pad_rows
from ..layers.transformer_block import block_norm, linear_rows
from .base import AudioShape
from .bottleneck import BottleneckConfig, SlidingCache, SlidingTransformer
from .conv_stages import conv_stages
from .seanet import channels_first
from .streaming import StreamingLayer

DILATIONS = (1, 3, 9)
KERNEL = 7
"""Of a ConvNeXt block."""


class WindowConfig(Config):
    """A transformer with sliding-window attention, RMSNorm and SwiGLU, between two linear layers."""

    width: PositiveInt = 512
    """Width of a hidden state."""
    layers: LayerCount = 8
    """Number of layers."""
    heads: LayerCount = 16
    """Attention heads of each layer."""
    head_width: PositiveInt = 64
    """Channels of a head, even."""
    feed_forward: PositiveInt = 1024
    """Width of the feed-forward layers."""
    window: PositiveInt = 72
    """Attention window in frames, the current one included."""
    layer_scale: PositiveFloat = 0.01
    """Initial value of the learned scale of each residual branch."""
    theta: PositiveFloat = Field(default=10000.0, gt=1)
    """Base of the rotary embedding."""


class Code2WavConfig(Config):
    """Decoder from latents to samples."""

    kind: Literal["code2wav"] = "code2wav"
    width: PositiveInt = 1024
    """Channels around the transformer and at the rates of `ratios`."""
    transformer: WindowConfig = WindowConfig()
    """At the frame rate."""
    ratios: tuple[PositiveInt, ...] = (2, 2)
    """Factors of the rate, each followed by a ConvNeXt block."""
    channels: PositiveInt = 1536
    """Channels at the first of `strides`; halved at each."""
    strides: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 5, 4, 3)
    """Further factors of the rate; all together are `hop`."""
    norm: Norm = "weight"
    """weight: weight normalization of the convolutions. none: no normalization."""
    chunk: PositiveInt = 1
    """Frames per call when frozen: sets the streaming latency and the fixed input shape."""

    def check_shape(self, shape: AudioShape) -> None:
        """Raise ValueError unless this network fits the tokenizer."""
        found = math.prod(self.ratios) * math.prod(self.strides)
        if found != shape.hop:
            raise ValueError(
                f"ratios {list(self.ratios)} and strides {list(self.strides)} make {found} samples a frame, but hop is "
                f"{shape.hop}; make them equal"
            )
        if self.transformer.head_width % 2:
            raise ValueError(f"transformer.head_width {self.transformer.head_width} is odd; rotations need pairs")
        if self.norm == "time_group":
            raise ValueError("norm time_group is over the whole signal, but this network is causal; choose another")

    def conv(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> PaddedConv:
        """A causal convolution with the norm of this network."""
        return PaddedConv(inputs, outputs, kernel, 1, dilation, causal=True, norm=self.norm)

    def transposed(self, inputs: int, outputs: int, stride: int, overlap: bool = True) -> PaddedTranspose:
        """A causal transposed convolution with the norm of this network."""
        return PaddedTranspose(inputs, outputs, stride, causal=True, norm=self.norm, overlap=overlap)


class SnakeBeta(nn.Module):
    """x + sin(a x)^2 / b, with a and b = exp of learned numbers per channel. Source: BigVGAN, arXiv:2206.04658."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, L] -> the same shape."""
        wave = torch.sin(self.alpha.exp()[:, None] * x).square()
        return x + (self.beta.exp() + 1e-9).reciprocal()[:, None] * wave

    def rows(self, x: Tensor, out: Tensor) -> Tensor:
        """[L, channels], written to `out`."""
        wave = (self.alpha.exp() * x).sin_().square_()
        return torch.addcmul(x, wave, (self.beta.exp() + 1e-9).reciprocal(), out=out)


class DepthwiseConv(PaddedConv):
    """A causal convolution of each channel by itself."""

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, causal=True, groups=channels)

    def rows(
        self,
        x: Tensor,
        span: Span,
        before: Activation | None = None,
        carried: Carried | None = None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """See PaddedConv.rows: a sum over taps, which for few steps takes less time than torch's convolution."""
        if carried is not None:
            padded = carried.pad(x, span, self.left, "zeros", 1, before)
        else:
            padded = pad_rows(x, span, self.left, 0, "zeros", before=before)
        assert isinstance(self.conv, nn.Conv1d) and self.conv.bias is not None
        y = x.new_empty(x.shape).copy_(self.conv.bias)
        for tap, weights in enumerate(self.conv.weight[:, 0].T):
            y.add_(padded[tap : tap + len(x)] * weights)
        return y if onto is None else y.add_(onto)

    def carries(self, steps: int) -> bool:
        """See PaddedConv.carries."""
        return True


class ChannelMLP(nn.Module):
    """scale * MLP(norm(x)) at each step by itself: what follows the convolution of a ConvNeXt block."""

    up = down = 1

    def __init__(self, channels: int, expansion: int = 4, layer_scale: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.widen = nn.Linear(channels, expansion * channels)
        self.narrow = nn.Linear(expansion * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, channels, L]."""
        h = self.narrow(F.gelu(self.widen(self.norm(x.transpose(1, 2)))))
        return (self.scale * h).transpose(1, 2)

    def rows(self, x: Tensor, span: Span, before: Activation | None = None, carried: Carried | None = None) -> Tensor:
        """See PaddedConv.rows."""
        blocks = 1 if carried is None else carried.blocks
        h = linear_rows(self.widen, self.norm(activate(x, before)).unflatten(0, (blocks, -1)))
        for block in h:
            torch.ops.aten.gelu.out(block, out=block)
        return linear_rows(self.narrow, h).flatten(0, 1).mul_(self.scale)

    def carries(self, steps: int) -> bool:
        """See PaddedConv.carries."""
        return True

    def late(self, steps: int) -> int:
        """See PaddedConv.late."""
        return steps

    def needs(self, low: int, high: int, per_frame: int) -> tuple[int, int]:
        """See PaddedConv.needs."""
        return low, high


class WindowTransformer(SlidingTransformer):
    """A `SlidingTransformer` between two linear layers, with a norm at its end; over [B, T, 1, D]."""

    def __init__(self, config: WindowConfig, outside: int):
        inner = BottleneckConfig(
            layers=config.layers,
            heads=config.heads,
            feed_forward=config.feed_forward,
            window=config.window,
            layer_scale=config.layer_scale,
            theta=config.theta,
        )
        super().__init__(inner, config.width, config.head_width, "rms", gated=True)
        self.enter = nn.Linear(outside, config.width)
        self.norm = block_norm("rms", config.width)
        self.leave = nn.Linear(config.width, outside)

    def forward(self, x: Tensor, mask: Tensor, state: None = None) -> tuple[Tensor, None]:
        """See SlidingTransformer."""
        self.lay_out()
        h, _ = super().forward(self.enter(x), mask)
        return self.leave(self.norm(h)), None

    def extend(self, frames: int, x: Tensor, mask: Tensor, state: SlidingCache | None) -> tuple[Tensor, SlidingCache]:
        """See SlidingTransformer."""
        self.lay_out()
        h = linear_rows(self.enter, x.reshape(-1, frames, x.shape[3]))
        h, state = super().extend(frames, h.view(*x.shape[:3], -1), mask, state)
        h = linear_rows(self.leave, self.norm(h.reshape(-1, frames, h.shape[3])))
        return h.view(x.shape), state


class Code2WavDecoder(nn.Module):
    """The decoder: latents to samples."""

    lost = 0

    def __init__(self, config: Code2WavConfig, shape: AudioShape):
        super().__init__()
        self.chunk, width = config.chunk, config.width
        self.first = ConvStack([config.conv(shape.latent_dim, width, 3)], 1)
        self.transformer = WindowTransformer(config.transformer, width)
        layers: list[nn.Module] = []
        for ratio in config.ratios:
            layers.append(config.transposed(width, width, ratio, overlap=False))
            layers.append(Residual([DepthwiseConv(width, KERNEL), ChannelMLP(width)]))
        channels = config.channels
        if channels % 2 ** len(config.strides):
            raise ConfigError(
                f"decoder.channels: {channels} cannot be halved {len(config.strides)} times, once for each stride; "
                f"choose a multiple of {2 ** len(config.strides)}"
            )
        layers.append(config.conv(width, channels, 7))
        for stride in config.strides:
            layers += [Pointwise(SnakeBeta(channels)), config.transposed(channels, channels // 2, stride)]
            channels //= 2
            layers += [_unit(config, channels, dilation) for dilation in DILATIONS]
        layers += [Pointwise(SnakeBeta(channels)), config.conv(channels, shape.channels, 7), Pointwise(nn.Hardtanh())]
        self.up = ConvStack(layers, 1)

    def stages(self) -> list[StreamingLayer]:
        """Latents [B, T, latent_dim] -> samples [B, T, C * hop]."""
        return [
            *conv_stages(self.first, self.chunk, before=lambda x: x[:, :, None]),
            *self.transformer.stages(self.chunk),
            *conv_stages(self.up, self.chunk, after=channels_first),
        ]


def _unit(config: Code2WavConfig, channels: int, dilation: int) -> Residual:
    """A residual unit."""
    return Residual(
        [
            Pointwise(SnakeBeta(channels)),
            config.conv(channels, channels, 7, dilation),
            Pointwise(SnakeBeta(channels)),
            config.conv(channels, channels, 1),
        ]
    )
