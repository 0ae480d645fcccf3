"""Audio encoder and decoder `snac`: the network of DAC with depthwise convolutions, noise and attention in blocks.

    encoder   conv7; per stride: units of dilation 1, 3, 9, Snake, strided conv that doubles the channels; attention;
              depthwise conv7
    decoder   depthwise conv7, conv1; attention; per stride: Snake, transposed conv that halves the channels, noise,
              units of dilation 1, 3, 9; Snake, conv7, tanh

Several code rates are a matter of the quantizer: a `chain` of `stride` (configs/tokenize/snac.yaml).
Source: SNAC, arXiv:2410.14411; the sizes of the layers as in hubertsiuzdak/snac (MIT).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, ConfigError
from ..layers.masked_conv import (
    ConvStack,
    Norm,
    PaddedConv,
    PaddedTranspose,
    Pointwise,
    Residual,
    run_rows,
    step_mask,
)
from ..layers.transformer_block import rotary_embedding, rotate
from ..layers.weight_norm import normed
from .base import AudioShape
from .dac import Snake
from .seanet import channels_last
from .streaming import StreamingLayer, window_stage

DILATIONS = (1, 3, 9)


class SNACConfig(Config):
    """One side of the codec."""

    kind: Literal["snac"] = "snac"
    channels: PositiveInt = 48
    """Encoder: channels at the sample rate, doubled at each stride. Decoder: channels at the frame rate, halved at each
    stride."""
    strides: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2, 4, 8, 8)
    """In processing order: the decoder's are usually the encoder's reversed."""
    depthwise: bool = True
    """true: the convolutions of kernel 7 between layers of equal width treat each channel by itself. false: all
    channels together."""
    attention: PositiveInt | None = None
    """Frames of a block of attention, inside which all see all; `chunk` must be a multiple. null: no attention."""
    head_width: PositiveInt = 64
    """Channels of an attention head, even."""
    noise: Literal["none", "off", "seeded"] = "none"
    """Decoder: noise times a learned projection is added at each rate, in training at random. Of the frozen decoder:
    off: without the noise. seeded: with noise that is a function of (noise_seed, place in the signal). none: the
    decoder has no such layers."""
    noise_seed: NonNegativeInt = 0
    """Seed of the frozen decoder's noise."""
    norm: Norm = "weight"
    """weight: weight normalization of the convolutions. none: no normalization."""
    chunk: PositiveInt = 32
    """Frames per call when frozen: sets the streaming latency and the fixed input shape."""

    def check_shape(self, shape: AudioShape) -> None:
        """Raise ValueError unless this network fits the tokenizer."""
        if math.prod(self.strides) != shape.hop:
            found = math.prod(self.strides)
            raise ValueError(f"strides {list(self.strides)} make {found} samples a frame, but hop is {shape.hop}")
        if self.attention and self.chunk % self.attention:
            raise ValueError(f"chunk {self.chunk} is not a multiple of the {self.attention} frames of attention")

    def conv(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> PaddedConv:
        """A centered convolution with the norm of this network."""
        return PaddedConv(inputs, outputs, kernel, stride, dilation, norm=self.norm, groups=groups)

    def wide(self, channels: int, dilation: int = 1) -> PaddedConv:
        """A convolution of kernel 7 between layers of equal width."""
        return self.conv(channels, channels, 7, dilation=dilation, groups=channels if self.depthwise else 1)

    def units(self, channels: int) -> list[nn.Module]:
        """The residual units of one rate."""
        return [
            Residual(
                [
                    Pointwise(Snake(channels)),
                    self.wide(channels, dilation),
                    Pointwise(Snake(channels)),
                    self.conv(channels, channels, 1),
                ]
            )
            for dilation in DILATIONS
        ]

    def attend(self, width: int, where: str) -> BlockAttention | None:
        """The attention at the frame rate, if any; ConfigError: the width has no whole number of heads."""
        if self.attention is None:
            return None
        if width % self.head_width or self.head_width % 2:
            raise ConfigError(f"{where}: {width} channels are no whole number of heads of {self.head_width}, even")
        return BlockAttention(width, width // self.head_width, self.attention)


class BlockAttention(nn.Module):
    """x + attention(norm(x)) inside blocks of frames, counted from the signal's start; rotary positions."""

    def __init__(self, width: int, heads: int, block: int):
        super().__init__()
        self.heads, self.block = heads, block
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def stage(self) -> StreamingLayer:
        """Frames [B, T, 1, D] -> the same shape."""
        return StreamingLayer(lambda x, mask, state: (self(x, mask), None), block=self.block)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, T, 1, D], from the start of a block; mask: [B, T]. Only valid frames are seen."""
        count, frames, _, width = x.shape
        short = -frames % self.block
        blocks = F.pad(self.norm(x[:, :, 0]), (0, 0, 0, short)).unflatten(1, (-1, self.block)).flatten(0, 1)
        valid = F.pad(mask, (0, short)).unflatten(1, (-1, self.block)).flatten(0, 1)
        projected = self.query_key_value(blocks).unflatten(2, (3, self.heads, -1))
        query, key, value = (part.transpose(1, 2) for part in projected.unbind(2))
        rotary = rotary_embedding(0, self.block, width // self.heads, 10000.0, x.device)
        seen = valid | ~valid.any(dim=1, keepdim=True)  # a block without a frame sees its padding instead of nothing
        query, key = rotate(query, rotary), rotate(key, rotary)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
        attended = self.out(attended.transpose(1, 2).flatten(2)).unflatten(0, (count, -1)).flatten(1, 2)
        return x + attended[:, :frames, None]


class Noise(nn.Module):
    """x + noise * projection(x), with one noise for all channels."""

    up = down = 1

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        self.conv = normed(nn.Conv1d(channels, channels, 1, bias=False), norm)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """x: [B, channels, L]; noise: [B, L]."""
        return x + noise[:, None] * self.conv(x)

    def rows(self, x: Tensor, noise: Tensor) -> Tensor:
        """As `forward` of one frozen signal with channels last: x [L, channels], noise [L]."""
        return torch.addcmul(x, noise[:, None], x @ self.conv.weight[:, :, 0].T)  # pyright: ignore

    def needs(self, low: int, high: int, per_frame: int) -> tuple[int, int]:
        """See PaddedConv.needs."""
        return low, high


class NoisyStack(ConvStack):
    """A ConvStack with `Noise` among its layers; frozen, the noise is off or seeded (SNACConfig.noise)."""

    def __init__(self, layers: list[nn.Module], config: SNACConfig):
        super().__init__(layers, 1)
        self.seed = config.noise_seed if config.noise == "seeded" else None

    def decode(self, x: Tensor, mask: Tensor, first: int) -> Tensor:
        """x: [B, T, 1, C]; mask: [B, T]; first: number of the first frame -> [B, T, R, outputs]."""
        if self.uses_rows(x):
            return self._decode_rows(x, mask, first)
        signal, places, stream = x.flatten(1, 2).transpose(1, 2), 1, 0
        for layer in self:
            if not isinstance(layer, Noise):
                signal = layer(signal, step_mask(mask, places))
                places *= int(layer.up)  # pyright: ignore[reportArgumentType]
                continue
            if self.training:
                signal = layer(signal, torch.randn_like(signal[:, 0]))
            elif self.seed is not None:
                noise = self._noise(stream, first * places, signal.shape[2], x.device)
                signal = layer(signal, noise.to(signal.dtype)[None])
            stream += 1
        return signal.transpose(1, 2).unflatten(1, (-1, places))

    def _decode_rows(self, x: Tensor, mask: Tensor, first: int) -> Tensor:
        signal, layers, spans = x[0].flatten(0, 1), list(self), self.spans(mask)
        done = 0
        for stream, number in enumerate(number for number, layer in enumerate(layers) if isinstance(layer, Noise)):
            signal = run_rows(layers[done:number], signal, spans[done:number])
            if self.seed is not None:
                noise = self._noise(stream, first * (len(signal) // x.shape[1]), len(signal), x.device)
                signal = layers[number].rows(signal, noise)  # pyright: ignore[reportCallIssue]
            done = number + 1
        return run_rows(layers[done:], signal, spans[done:])[None].unflatten(1, (x.shape[1], -1))

    def _noise(self, stream: int, first: int, count: int, device: torch.device) -> Tensor:
        """Noise of the steps first .. first + count - 1."""
        assert self.seed is not None
        return seeded_normal(self.seed, stream, torch.arange(first, first + count, device=device))


class SNACEncoder(nn.Module):
    """SNAC encoder: samples to latents."""

    def __init__(self, config: SNACConfig, shape: AudioShape):
        super().__init__()
        if config.noise != "none":
            raise ConfigError("encoder.noise: only a decoder has noise; leave it out")
        self.hop, self.channels = shape.hop, shape.channels
        width = config.channels
        layers: list[nn.Module] = [config.conv(shape.channels, width, 7)]
        for stride in config.strides:
            layers += [*config.units(width), Pointwise(Snake(width))]
            layers.append(config.conv(width, 2 * width, 2 * stride, stride))
            width *= 2
        if width != shape.latent_dim:
            raise ConfigError(
                f"encoder.channels: the strides make {width} latents, but latent_dim is {shape.latent_dim}"
            )
        last: list[nn.Module] = [config.wide(width)]
        self.attention = config.attend(width, "encoder.head_width")
        apart = self.attention is not None  # layers after the attention form a separate stage
        self.down = ConvStack(layers if apart else layers + last, shape.hop)
        self.last = ConvStack(last if apart else [], 1)

    def frame(self, samples: Tensor) -> Tensor:
        """Samples [..., N], N a multiple of hop -> frames [..., T, hop]."""
        return samples.unflatten(-1, (-1, self.hop))

    def stages(self) -> list[StreamingLayer]:
        """Frames [B, T, C * hop] -> latents [B, T, latent_dim]."""
        down, last, channels = self.down, self.last, self.channels
        if self.attention is None:
            back, ahead = down.reach_back, down.reach_ahead
            return [window_stage(lambda x, mask: down(channels_last(x, channels), mask)[:, :, 0], back, ahead)]
        first = window_stage(lambda x, mask: down(channels_last(x, channels), mask), down.reach_back, down.reach_ahead)
        after = window_stage(lambda x, mask: last(x, mask)[:, :, 0], last.reach_back, last.reach_ahead)
        return [first, self.attention.stage(), after]


class SNACDecoder(nn.Module):
    """SNAC decoder: latents to samples."""

    lost = 0

    def __init__(self, config: SNACConfig, shape: AudioShape):
        super().__init__()
        width, latents = config.channels, shape.latent_dim
        if width % 2 ** len(config.strides):
            raise ConfigError(f"decoder.channels: {width} cannot be halved {len(config.strides)} times")
        if config.depthwise:
            first: list[nn.Module] = [config.wide(latents), config.conv(latents, width, 1)]
        else:
            first = [config.conv(latents, width, 7)]
        self.attention = config.attend(width, "decoder.head_width")
        layers: list[nn.Module] = []
        for stride in config.strides:
            layers.append(Pointwise(Snake(width)))
            layers.append(PaddedTranspose(width, width // 2, stride, norm=config.norm))
            width //= 2
            if config.noise != "none":
                layers.append(Noise(width, config.norm))
            layers += config.units(width)
        layers += [Pointwise(Snake(width)), config.conv(width, shape.channels, 7), Pointwise(nn.Tanh())]
        apart = self.attention is not None
        self.first = ConvStack(first if apart else [], 1)
        self.up = NoisyStack(layers if apart else first + layers, config)

    def stages(self) -> list[StreamingLayer]:
        """Latents [B, T, latent_dim] -> samples [B, T, C * hop]."""
        first, up, apart = self.first, self.up, self.attention is not None

        def decode(x: Tensor, mask: Tensor, number: int | None) -> tuple[Tensor, None]:
            made = up.decode(x if apart else x[:, :, None], mask, number or 0)
            return made.transpose(2, 3).flatten(2).float(), None

        last = StreamingLayer(decode, up.reach_back, up.reach_ahead, numbered=True)
        if self.attention is None:
            return [last]
        before = window_stage(lambda x, mask: first(x[:, :, None], mask), first.reach_back, first.reach_ahead)
        return [before, self.attention.stage(), last]


def seeded_normal(seed: int, stream: int, where: Tensor) -> Tensor:
    """Standard normal numbers [L] float32, a function of (seed, stream, place): hashed, then the Box-Muller transform.

    where: places [L], long. Source of the hash: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    mixed = _mix(where + _mix(torch.tensor(seed, device=where.device) * 64 + stream))
    low, high = mixed & 0xFFFFFF, (mixed >> 24) & 0xFFFFFF  # 24 bits each, all that float32 holds
    radius = (-2 * torch.log((low + 1).float() * 2.0**-24)).sqrt()
    return radius * torch.cos(high.float() * (2 * math.pi * 2.0**-24))


def _mix(x: Tensor) -> Tensor:
    """Hash int64, which wraps around as the constants need."""
    x = x + -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)
