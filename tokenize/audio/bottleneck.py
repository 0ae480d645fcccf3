"""Between a convolutional network and its quantizer: a causal transformer, and convolutions to a lower frame rate.

    encoder   places at the network's rate ──► transformer ──► stride places become one frame
    decoder   frames ──► each becomes `stride` places ──► transformer ──► the network

The transformer looks back over a sliding window and never ahead, so it runs chunk after chunk with a memory of constant
size. Source: Mimi (Moshi, arXiv:2410.00037, section 3.3).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, LayerCount, LayerCountOrNone
from ..layers.transformer_block import AttentionBlock, Past, rotary_angles, sliding_window
from ..quantizers.base import float32_only
from .masked_conv import ConvStack, PaddedConv, PaddedTranspose, Padding
from .streaming import StreamingLayer, window_stage


class BottleneckConfig(Config):
    """A transformer and a change of rate."""

    stride: PositiveInt = 1
    """Places at the network's rate that make one frame of codes."""
    padding: Padding = "replicate"
    """Before the first place, for the convolution to frames."""
    layers: LayerCountOrNone = 0
    """Of the transformer; 0: none."""
    heads: LayerCount = 8
    feed_forward: PositiveInt = 2048
    window: PositiveInt = 250
    """Places a layer sees: its own and those just before it."""
    layer_scale: PositiveFloat = 0.01
    """First value of the learned factor on what a layer adds."""
    theta: PositiveFloat = Field(default=10000.0, gt=1)
    """Base of the rotary positions."""


class SlidingTransformer(nn.Module):
    """Causal blocks over places [B, T, r, D], each looking back `window` places."""

    def __init__(self, config: BottleneckConfig, width: int):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            AttentionBlock(width, config.heads, config.feed_forward, bias=False, layer_scale=config.layer_scale)
            for _ in range(config.layers)
        )

    def stages(self) -> list[StreamingLayer]:
        """[B, T, r, D] -> the same shape."""
        return [StreamingLayer(self.forward, memory=True)] if len(self.blocks) else []

    def forward(self, x: Tensor, mask: Tensor, state: list[Past] | None) -> tuple[Tensor, list[Past]]:
        """x: [B, T, r, D]; state: keys and values of each layer. Frames outside the mask come after all others."""
        window, heads = self.config.window, self.config.heads
        h = x.flatten(1, 2)
        keys = h.shape[1] + (state[0][0].shape[2] if state else 0)
        visible = sliding_window(h.shape[1], keys, window, h.device)
        rotary = rotary_angles(keys, h.shape[2] // heads, self.config.theta, h.device)
        after = []
        for number, block in enumerate(self.blocks):
            h, (key, value) = block(h, visible, state[number] if state else None, rotary)
            kept = max(0, keys - window + 1)
            after.append((key[:, :, kept:], value[:, :, kept:]))
        return h.unflatten(1, x.shape[1:3]), after


class EncoderBottleneck(nn.Module):
    """Places of the network [B, T, r, D] to frames [B, T, D], r = stride."""

    def __init__(self, config: BottleneckConfig, width: int):
        super().__init__()
        self.transformer = SlidingTransformer(config, width)
        stride = config.stride
        down = PaddedConv(width, width, 2 * stride, stride, causal=True, padding=config.padding, bias=False)
        self.down = ConvStack([down] if stride > 1 else [], stride)

    def stages(self) -> list[StreamingLayer]:
        """[B, T, r, D] -> [B, T, D]."""
        last = window_stage(lambda x, mask: self.down(x, mask)[:, :, 0], self.down.reach_back, self.down.reach_ahead)
        return [*self.transformer.stages(), last]


class DecoderBottleneck(nn.Module):
    """Frames [B, T, D] to places of the network [B, T, r, D]."""

    def __init__(self, config: BottleneckConfig, width: int):
        super().__init__()
        stride = config.stride
        up = PaddedTranspose(width, width, stride, causal=True, bias=False, groups=width)
        self.up = ConvStack([up] if stride > 1 else [], 1)
        self.transformer = SlidingTransformer(config, width)

    def stages(self) -> list[StreamingLayer]:
        """[B, T, D] -> [B, T, r, D]."""
        first = window_stage(lambda x, mask: self.up(x[:, :, None], mask), self.up.reach_back, self.up.reach_ahead)
        return [first, *self.transformer.stages()]


class Recurrence(nn.Module):
    """x + LSTM(x) over places [B, T, r, D], in float32. Source: EnCodec, arXiv:2210.13438, section 3.1."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)

    def stages(self) -> list[StreamingLayer]:
        """[B, T, r, D] -> the same shape."""
        return [StreamingLayer(self.forward, memory=True)]

    def forward(self, x: Tensor, mask: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x: [B, T, r, D]; state: the LSTM's own. Frames outside the mask come after all others."""
        flat = x.flatten(1, 2)
        with float32_only():
            found, state = self.lstm(flat.float(), state)
        return (flat + found).unflatten(1, x.shape[1:3]), state
