"""Bottleneck between a convolutional network and its quantizer: a causal transformer and a change of frame rate.

    encoder   steps at the network's rate ──► transformer ──► convolution: `stride` steps become one frame
    decoder   frames ──► transposed convolution: `stride` steps each ──► transformer ──► network

The transformer has causal sliding-window attention, so it runs chunk by chunk with a KV cache of constant size.
Source: Mimi (Moshi, arXiv:2410.00037, section 3.3).
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, LayerCount, LayerCountOrNone
from ..layers.lstm_steps import run_lstm
from ..layers.transformer_block import AttentionBlock, Past, rotary_angles, sliding_window
from ..quantizers.base import float32_only
from .masked_conv import ConvStack, PaddedConv, PaddedTranspose, Padding
from .streaming import StreamingLayer, window_stage


class BottleneckConfig(Config):
    """A transformer and a change of frame rate."""

    stride: PositiveInt = 1
    """Steps at the network's rate per frame of codes."""
    padding: Padding = "replicate"
    """Left padding of the convolution to frames."""
    layers: LayerCountOrNone = 0
    """Transformer layers; 0: no transformer."""
    heads: LayerCount = 8
    """Attention heads of each transformer layer."""
    feed_forward: PositiveInt = 2048
    """Width of the feed-forward layers."""
    window: PositiveInt = 250
    """Attention window in steps, the current one included."""
    layer_scale: PositiveFloat = 0.01
    """Initial value of the learned scale of each residual branch."""
    theta: PositiveFloat = Field(default=10000.0, gt=1)
    """Base of the rotary embedding."""


class SlidingTransformer(nn.Module):
    """Causal transformer with sliding-window attention over steps [B, T, r, D]."""

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
        """x: [B, T, r, D]; state: KV cache of each layer. Masked frames must come last."""
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
    """Steps of the network [B, T, r, D] to frames [B, T, D], r = stride."""

    def __init__(self, config: BottleneckConfig, width: int, ragged: bool = False):
        """ragged: the mask may end the signal inside a frame."""
        super().__init__()
        self.transformer = SlidingTransformer(config, width)
        stride = config.stride
        down = PaddedConv(
            width, width, 2 * stride, stride, causal=True, padding=config.padding, bias=False, ragged=ragged
        )
        self.down = ConvStack([down] if stride > 1 else [], stride)

    def stages(self) -> list[StreamingLayer]:
        """[B, T, r, D] -> [B, T, D]."""
        last = window_stage(lambda x, mask: self.down(x, mask)[:, :, 0], self.down.reach_back, self.down.reach_ahead)
        return [*self.transformer.stages(), last]


class DecoderBottleneck(nn.Module):
    """Frames [B, T, D] to steps of the network [B, T, r, D]."""

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
    """x + LSTM(x) over steps [B, T, r, D], in float32. Source: EnCodec, arXiv:2210.13438, section 3.1."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)

    def stages(self) -> list[StreamingLayer]:
        """[B, T, r, D] -> the same shape."""
        return [StreamingLayer(self.forward, memory=True)]

    def forward(self, x: Tensor, mask: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x: [B, T, r, D]; state: LSTM state. Masked frames must come last."""
        flat = x.flatten(1, 2)
        if len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
            found, state = run_lstm(self.lstm, flat[0], state)
            return (flat + found).unflatten(1, x.shape[1:3]), state
        with float32_only():
            found, state = self.lstm(flat.float(), state)
        return (flat + found).unflatten(1, x.shape[1:3]), state
