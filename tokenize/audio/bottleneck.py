"""Bottleneck between a convolutional network and its quantizer: a causal transformer and a change of frame rate.

    encoder   steps at the network's rate ──► transformer ──► convolution: `stride` steps become one frame
    decoder   frames ──► transposed convolution: `stride` steps each ──► transformer ──► network

The transformer has causal sliding-window attention, so it runs block by block with a KV cache of constant size.
Source: Mimi (Moshi, arXiv:2410.00037, section 3.3).
"""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Any, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, LayerCount, LayerCountOrNone
from ..layers.lstm_steps import run_lstm
from ..layers.masked_conv import ConvStack, PaddedConv, PaddedTranspose, Padding
from ..layers.row_conv import lay_out
from ..layers.transformer_block import AttentionBlock, BlockNorm, rotary_embedding, sliding_window
from ..quantizers.base import float32_only
from .conv_stages import conv_stages
from .streaming import StreamingLayer, blocks_per_call, frames_per_call


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

    def __init__(
        self,
        config: BottleneckConfig,
        width: int,
        head_width: int | None = None,
        norm: BlockNorm = "layer",
        gated: bool = False,
    ):
        """head_width, norm, gated: see AttentionBlock."""
        super().__init__()
        self.config, self.width = config, width
        self.frozen = self.laid_out = False
        self.head_width = width // config.heads if head_width is None else head_width
        self.blocks = nn.ModuleList(
            AttentionBlock(width, config.heads, config.feed_forward, False, config.layer_scale, head_width, norm, gated)
            for _ in range(config.layers)
        )

    def freeze(self) -> None:
        """Prepare for blocks of few steps; the weights must not be trained afterwards."""
        self.frozen = True

    def lay_out(self) -> None:
        """Reorder the weights of a frozen transformer at the first use, see ConvStack.lay_out."""
        if self.laid_out or not self.frozen:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                lay_out(module)
        self.laid_out = True

    def stages(self, chunk: int) -> list[StreamingLayer]:
        """[B, T, r, D] -> the same shape."""
        if not len(self.blocks):
            return []
        frames, eager = frames_per_call(chunk, self.config.stride)
        extend = partial(self.extend, frames)
        widths = gcd(self.width, self.config.feed_forward, self.config.heads * self.head_width)
        blocks = blocks_per_call(frames, self.config.stride * widths)
        return [StreamingLayer(self.forward, memory=True, extend=extend, frames=frames, eager=eager, blocks=blocks)]

    def forward(self, x: Tensor, mask: Tensor, state: None = None) -> tuple[Tensor, None]:
        """x: [B, T, r, D], all frames; masked ones must come last."""
        self.lay_out()
        h = x.flatten(1, 2)
        steps = h.shape[1]
        visible = sliding_window(steps, steps, self.config.window, h.device)
        rotary = rotary_embedding(0, steps, self.head_width, self.config.theta, h.device)
        for block in self.blocks:
            h = block(h, visible, rotary)
        return h.unflatten(1, x.shape[1:3]), None

    def extend(self, frames: int, x: Tensor, mask: Tensor, state: SlidingCache | None) -> tuple[Tensor, SlidingCache]:
        """See `StreamingLayer.extend`. frames: of a block; x: blocks of frames, [1, T, r, D]."""
        self.lay_out()
        h = x.reshape(-1, frames * x.shape[2], x.shape[3])
        blocks, steps, _ = h.shape
        heads, window = self.config.heads, self.config.window
        size = -(-(window - 1) // steps) + 1  # blocks in the cache: those that a window reaches
        if state is None:
            state = SlidingCache(0, h.new_zeros(len(self.blocks), 2, heads, size * steps, self.head_width))
        numbers = range(state.block, state.block + blocks)
        places = [slice(number % size * steps, (number % size + 1) * steps) for number in numbers]
        bias = torch.stack([_bias(number, size, steps, window) for number in numbers]).to(h.device)
        rotary = [rotary_embedding(n * steps, steps, self.head_width, self.config.theta, h.device) for n in numbers]
        cos, sin = (torch.stack(parts)[:, None] for parts in zip(*rotary, strict=True))
        of_frames = (mask if mask.dim() == 2 else mask[:, :, 0])[0]
        first, count = int(of_frames.int().argmax()), int(of_frames.sum())
        new = slice(first * x.shape[2], (first + count) * x.shape[2]) if blocks == 1 else slice(0, steps)
        for block, kept in zip(self.blocks, state.kept, strict=True):
            h = block.extend(h, kept, places, new, bias, (cos, sin))  # pyright: ignore[reportCallIssue]
        complete = first + count == x.shape[1]
        return h.view(x.shape), SlidingCache(state.block + blocks if complete else state.block, state.kept)


class SlidingCache(NamedTuple):
    """KV caches of a stream between two calls; written in place."""

    block: int
    """Number of the next block, or of the one that is not complete."""
    kept: Tensor
    """[layers, 2, H, M, E]: keys and values of the last blocks. Block n is in place n modulo the number of blocks."""


def _bias(number: int, size: int, steps: int, window: int) -> Tensor:
    """What is added in attention from a block to a cache of `size` blocks: 0 where a step sees another, -inf elsewhere.
    [steps, size * steps] float32."""
    blocks = number - (number - torch.arange(size)) % size  # the last one up to this that has the place
    places = (blocks[:, None] * steps + torch.arange(steps)).flatten()
    ages = number * steps + torch.arange(steps)[:, None] - places
    return torch.zeros(ages.shape).masked_fill_((ages < 0) | (ages >= window) | (places < 0), -torch.inf)


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

    def stages(self, chunk: int) -> list[StreamingLayer]:
        """[B, T, r, D] -> [B, T, D], in a network with chunks of `chunk` frames."""
        return [*self.transformer.stages(chunk), *conv_stages(self.down, chunk, after=lambda x: x[:, :, 0])]


class DecoderBottleneck(nn.Module):
    """Frames [B, T, D] to steps of the network [B, T, r, D]."""

    def __init__(self, config: BottleneckConfig, width: int):
        super().__init__()
        stride = config.stride
        up = PaddedTranspose(width, width, stride, causal=True, bias=False, groups=width)
        self.up = ConvStack([up] if stride > 1 else [], 1)
        self.transformer = SlidingTransformer(config, width)

    def stages(self, chunk: int) -> list[StreamingLayer]:
        """[B, T, D] -> [B, T, r, D], in a network with chunks of `chunk` frames."""
        return [*conv_stages(self.up, chunk, before=lambda x: x[:, :, None]), *self.transformer.stages(chunk)]


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
