"""Audio encoder and decoder `seanet`: strided convolutions with residual blocks between samples and latents.

    encoder   conv, then per ratio (in reverse order): residual blocks, ELU, strided conv that doubles the channels;
              LSTM, ELU, conv; bottleneck
    decoder   bottleneck; conv, LSTM, then per ratio: ELU, transposed conv that halves them, residual blocks; ELU, conv

Sources: SoundStream, arXiv:2107.03312; EnCodec, arXiv:2210.13438; Mimi (Moshi), arXiv:2410.00037.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import FingerprintedConfig, LayerCount, LayerCountOrNone
from ..layers.masked_conv import ConvStack, Norm, PaddedConv, PaddedTranspose, Padding, Pointwise, Residual
from .base import AudioShape
from .bottleneck import BottleneckConfig, DecoderBottleneck, EncoderBottleneck, Recurrence
from .conv_stages import conv_stages
from .streaming import StreamingLayer


class SEANetConfig(FingerprintedConfig):
    """One side of a convolutional codec."""

    added: ClassVar[frozenset[str]] = frozenset({"last_frame"})

    kind: Literal["seanet"] = "seanet"
    channels: PositiveInt = 32
    """Channels at the sample rate; doubled at every ratio."""
    ratios: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 5, 4, 2)
    """Factors of the sample rate changes, in decoder order; their product times the bottleneck's stride is `hop`."""
    kernel: PositiveInt = 7
    """Kernel size of the first convolution."""
    last_kernel: PositiveInt = 7
    """Kernel size of the last convolution."""
    residual_kernel: PositiveInt = 3
    """Kernel size of the residual blocks."""
    residual_layers: LayerCount = 1
    """Residual blocks at each rate."""
    dilation_growth: PositiveInt = 2
    """Block j at a rate has dilation dilation_growth ^ j."""
    compress: PositiveInt = 2
    """Reduction factor of the channels inside a residual block."""
    shortcut: Literal["convolution", "identity"] = "identity"
    """Shortcut of the residual blocks."""
    lstm_layers: LayerCountOrNone = 2
    """LSTM layers at the lowest rate; 0: no LSTM."""
    causal: bool = True
    """true: no convolution looks ahead (but see `padding` and `trim_right`). false: convolutions are centered."""
    padding: Padding = "zeros"
    """Padding at the signal's ends. With `reflect`, even causal convolutions look ahead at the first samples."""
    trim_right: float = Field(default=1.0, ge=0, le=1)
    """Fraction of a causal transposed convolution's surplus trimmed on the right; below 1 it looks ahead."""
    last_frame: Literal["zeros", "padded"] = "zeros"
    """Of an encoder, for signals whose length is no multiple of hop. zeros: zeros complete the last frame. padded:
    each strided convolution pads its input to a multiple of its stride by the mode `padding`, as in EnCodec."""
    norm: Norm = "weight"
    """weight: weight normalization of the convolutions. time_group: the result of each convolution is normalized over
    all its channels and steps, which needs `segments`. none: no normalization."""
    bottleneck: BottleneckConfig = Field(default_factory=BottleneckConfig)
    """Transformer and change of frame rate between this network and the quantizer."""
    chunk: PositiveInt = 32
    """Frames per call when frozen: sets the streaming latency and the fixed input shape."""

    def check_shape(self, shape: AudioShape) -> None:
        """Raise ValueError unless this network fits the tokenizer."""
        check_hop(self.ratios, "ratios", self.bottleneck, shape)

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> PaddedConv:
        """A convolution with the padding and norm of this network."""
        ragged = self.last_frame == "padded"
        return PaddedConv(
            inputs, outputs, kernel, stride, dilation, self.causal, self.padding, self.norm, ragged=ragged
        )

    def residual(self, channels: int) -> list[nn.Module]:
        """The residual blocks of one rate."""
        blocks: list[nn.Module] = []
        for number in range(self.residual_layers):
            inner = max(1, channels // self.compress)
            layers: list[nn.Module] = [
                Pointwise(nn.ELU()),
                self.conv(channels, inner, self.residual_kernel, dilation=self.dilation_growth**number),
                Pointwise(nn.ELU()),
                self.conv(inner, channels, 1),
            ]
            blocks.append(Residual(layers, self.conv(channels, channels, 1) if self.shortcut != "identity" else None))
        return blocks


def check_hop(ratios: tuple[int, ...], name: str, bottleneck: BottleneckConfig, shape: AudioShape) -> None:
    """Raise ValueError unless the product of ratios and bottleneck stride is the tokenizer's hop, or if the
    bottleneck's heads do not fit latent_dim."""
    found = math.prod(ratios) * bottleneck.stride
    if found != shape.hop:
        raise ValueError(
            f"{name} {list(ratios)} and a bottleneck.stride of {bottleneck.stride} make {found} samples a frame, but "
            f"hop is {shape.hop}; make them equal"
        )
    if bottleneck.layers and (shape.latent_dim % (2 * bottleneck.heads)):
        raise ValueError(
            f"latent_dim {shape.latent_dim} does not give each of bottleneck.heads {bottleneck.heads} an even number "
            "of channels; change one of them"
        )


def channels_last(frames: Tensor, channels: int) -> Tensor:
    """Frames [B, T, C * hop], channels concatenated -> [B, T, hop, C], the layout of `ConvStack`."""
    return frames.unflatten(2, (channels, -1)).transpose(2, 3)


def channels_first(frames: Tensor) -> Tensor:
    """Frames [B, T, hop, C] of a `ConvStack` -> [B, T, C * hop] float32, channels concatenated."""
    return frames.transpose(2, 3).flatten(2).float()


class SEANetEncoder(nn.Module):
    """SEANet encoder: samples to latents."""

    def __init__(self, config: SEANetConfig, shape: AudioShape):
        super().__init__()
        self.hop, self.channels, self.chunk = shape.hop, shape.channels, config.chunk
        width = config.channels
        layers: list[nn.Module] = [config.conv(shape.channels, width, config.kernel)]
        for ratio in reversed(config.ratios):
            layers += [*config.residual(width), Pointwise(nn.ELU())]
            layers.append(config.conv(width, 2 * width, 2 * ratio, ratio))
            width *= 2
        last: list[nn.Module] = [Pointwise(nn.ELU()), config.conv(width, shape.latent_dim, config.last_kernel)]
        stride = config.bottleneck.stride
        apart = config.lstm_layers > 0  # layers after the LSTM form a separate stage
        self.down = ConvStack(layers if apart else layers + last, shape.hop)
        self.recurrence = Recurrence(width, config.lstm_layers) if apart else None
        self.last = ConvStack(last if apart else [], stride)
        self.bottleneck = EncoderBottleneck(config.bottleneck, shape.latent_dim, config.last_frame == "padded")

    def frame(self, samples: Tensor) -> Tensor:
        """Samples [..., N], N a multiple of hop -> frames [..., T, hop]."""
        return samples.unflatten(-1, (-1, self.hop))

    def stages(self) -> list[StreamingLayer]:
        """Frames [B, T, C * hop] -> latents [B, T, latent_dim]."""
        channels, chunk = self.channels, self.chunk
        stages = conv_stages(self.down, chunk, lambda x: channels_last(x, channels))
        if self.recurrence is not None:
            stages += [*self.recurrence.stages(), *conv_stages(self.last, chunk)]
        return [*stages, *self.bottleneck.stages(chunk)]


class SEANetDecoder(nn.Module):
    """SEANet decoder: latents to samples."""

    lost = 0

    def __init__(self, config: SEANetConfig, shape: AudioShape):
        super().__init__()
        self.hop, self.chunk = shape.hop, config.chunk
        width = config.channels * 2 ** len(config.ratios)
        first: list[nn.Module] = [config.conv(shape.latent_dim, width, config.kernel)]
        layers: list[nn.Module] = []
        deepest = width
        for ratio in config.ratios:
            layers.append(Pointwise(nn.ELU()))
            layers.append(PaddedTranspose(width, width // 2, ratio, config.causal, config.trim_right, config.norm))
            width //= 2
            layers += config.residual(width)
        layers += [Pointwise(nn.ELU()), config.conv(width, shape.channels, config.last_kernel)]
        stride = config.bottleneck.stride
        self.bottleneck = DecoderBottleneck(config.bottleneck, shape.latent_dim)
        apart = config.lstm_layers > 0  # layers before the LSTM form a separate stage
        self.first = ConvStack(first if apart else [], stride)
        self.recurrence = Recurrence(deepest, config.lstm_layers) if apart else None
        self.up = ConvStack(layers if apart else first + layers, stride)

    def stages(self) -> list[StreamingLayer]:
        """Latents [B, T, latent_dim] -> samples [B, T, C * hop]."""
        stages = self.bottleneck.stages(self.chunk)
        if self.recurrence is not None:
            stages += [*conv_stages(self.first, self.chunk), *self.recurrence.stages()]
        return [*stages, *conv_stages(self.up, self.chunk, after=channels_first)]
