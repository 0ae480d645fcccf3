"""Audio encoder and decoder `dac`: strided convolutions with dilated residual units and Snake activations.

    encoder   conv7; per stride: units of dilation 1, 3, 9, Snake, strided conv that doubles the channels; Snake, conv3
    decoder   conv7; per stride: Snake, transposed conv that halves them, units of dilation 1, 3, 9; Snake, conv7, tanh

The published decoder loses a step at the signal's end at each odd stride; `tail` chooses between that and T * hop
samples, of which only the last few dozens differ. Source: DAC, arXiv:2306.06546.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import ConfigError, FingerprintedConfig
from ..layers.masked_conv import ConvStack, Norm, PaddedConv, PaddedTranspose, Pointwise, Residual
from .base import AudioShape
from .bottleneck import BottleneckConfig, DecoderBottleneck, EncoderBottleneck
from .conv_stages import conv_stages
from .seanet import channels_first, channels_last, check_hop
from .streaming import StreamingLayer


class DACConfig(FingerprintedConfig):
    """One side of the codec."""

    added: ClassVar[frozenset[str]] = frozenset({"tail"})

    kind: Literal["dac"] = "dac"
    channels: PositiveInt = 64
    """Encoder: channels at the sample rate, doubled at each stride. Decoder: channels at the frame rate, halved at each
    stride."""
    strides: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2, 4, 8, 8)
    """In processing order: the decoder's are usually the encoder's reversed."""
    dilations: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 3, 9)
    """Dilations of the residual units at each rate."""
    causal: bool = False
    """true: no convolution looks ahead. false: convolutions are centered."""
    norm: Norm = "weight"
    """weight: weight normalization of the convolutions. none: no normalization."""
    bottleneck: BottleneckConfig = Field(default_factory=BottleneckConfig)
    """Transformer and change of frame rate between this network and the quantizer."""
    chunk: PositiveInt = 32
    """Frames per call when frozen: sets the streaming latency and the fixed input shape."""
    tail: Literal["full", "short"] = "full"
    """Of a decoder. full: T frames give T * hop samples. short: as published, a transposed convolution of an odd stride
    gives a step less at the signal's end: strides 8, 5, 4, 2 give T * 320 - 8 samples."""

    def check_shape(self, shape: AudioShape) -> None:
        """Raise ValueError unless this network fits the tokenizer."""
        if self.tail == "short" and self.causal:
            raise ValueError("tail 'short' is that of centered convolutions; set causal: false")
        check_hop(self.strides, "strides", self.bottleneck, shape)

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> PaddedConv:
        """A convolution with the padding and norm of this network."""
        return PaddedConv(inputs, outputs, kernel, stride, dilation, self.causal, "zeros", self.norm)

    def units(self, channels: int) -> list[nn.Module]:
        """The residual units of one rate."""
        return [
            Residual(
                [
                    Pointwise(Snake(channels)),
                    self.conv(channels, channels, 7, dilation=dilation),
                    Pointwise(Snake(channels)),
                    self.conv(channels, channels, 1),
                ]
            )
            for dilation in self.dilations
        ]


class Snake(nn.Module):
    """x + sin(a x)^2 / a, with a learned per channel. Source: arXiv:2006.08195."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, L] -> the same shape."""
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).square()

    def rows(self, x: Tensor, out: Tensor) -> Tensor:
        """[L, channels], written to `out`."""
        alpha = self.alpha[:, 0]
        wave = (alpha * x).sin_().square_()
        return torch.addcmul(x, wave, (alpha + 1e-9).reciprocal(), out=out)


class DACEncoder(nn.Module):
    """DAC encoder: samples to latents."""

    def __init__(self, config: DACConfig, shape: AudioShape):
        super().__init__()
        if config.tail != "full":
            raise ConfigError("encoder.tail: only a decoder has a short tail; leave it out")
        self.hop, self.channels, self.chunk = shape.hop, shape.channels, config.chunk
        width = config.channels
        layers: list[nn.Module] = [config.conv(shape.channels, width, 7)]
        for stride in config.strides:
            layers += [*config.units(width), Pointwise(Snake(width))]
            layers.append(config.conv(width, 2 * width, 2 * stride, stride))
            width *= 2
        layers += [Pointwise(Snake(width)), config.conv(width, shape.latent_dim, 3)]
        self.down = ConvStack(layers, shape.hop)
        self.bottleneck = EncoderBottleneck(config.bottleneck, shape.latent_dim)

    def frame(self, samples: Tensor) -> Tensor:
        """Samples [..., N], N a multiple of hop -> frames [..., T, hop]."""
        return samples.unflatten(-1, (-1, self.hop))

    def stages(self) -> list[StreamingLayer]:
        """Frames [B, T, C * hop] -> latents [B, T, latent_dim]."""
        channels = self.channels
        first = conv_stages(self.down, self.chunk, lambda x: channels_last(x, channels))
        return [*first, *self.bottleneck.stages(self.chunk)]


class DACDecoder(nn.Module):
    """DAC decoder: latents to samples."""

    def __init__(self, config: DACConfig, shape: AudioShape):
        super().__init__()
        self.chunk, width = config.chunk, config.channels
        if width % 2 ** len(config.strides):
            raise ConfigError(
                f"decoder.channels: {width} cannot be halved {len(config.strides)} times, once for each stride; "
                f"choose a multiple of {2 ** len(config.strides)}"
            )
        layers: list[nn.Module] = [config.conv(shape.latent_dim, width, 7)]
        for stride in config.strides:
            layers.append(Pointwise(Snake(width)))
            short = config.tail == "short"
            layers.append(PaddedTranspose(width, width // 2, stride, config.causal, norm=config.norm, short=short))
            width //= 2
            layers += config.units(width)
        layers += [Pointwise(Snake(width)), config.conv(width, shape.channels, 7), Pointwise(nn.Tanh())]
        self.bottleneck = DecoderBottleneck(config.bottleneck, shape.latent_dim)
        self.up = ConvStack(layers, config.bottleneck.stride)
        self.lost = self.up.lost

    def stages(self) -> list[StreamingLayer]:
        """Latents [B, T, latent_dim] -> samples [B, T, C * hop]."""
        return [*self.bottleneck.stages(self.chunk), *conv_stages(self.up, self.chunk, after=channels_first)]
