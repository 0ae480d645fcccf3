"""Transformer block for tokenizers: pre-norm attention and MLP, at once or block by block with a KV cache."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .row_products import add_product

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines [..., T, E / 2] of the rotary embedding."""


BlockNorm = Literal["layer", "rms"]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the channels, eps 1e-5, computed in float32. Source: arXiv:1910.07467."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[*, width] -> the same shape."""
        y = x.float()
        return self.weight * (y * (y.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()).to(x.dtype)


def block_norm(kind: BlockNorm, width: int) -> nn.Module:
    """A normalization over the channels, eps 1e-5."""
    return nn.LayerNorm(width) if kind == "layer" else RMSNorm(width)


class AttentionBlock(nn.Module):
    """x + scale * attention(norm(x)), then x + scale * MLP(norm(x)); channel-last."""

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        bias: bool = True,
        layer_scale: float | None = None,
        head_width: int | None = None,
        norm: BlockNorm = "layer",
        gated: bool = False,
    ):
        """layer_scale: initial value of the learned factor per channel; None: no factor. head_width: None: width /
        heads. gated: the MLP is down(silu(gate x) * up x), one layer for gate and up, in place of down(gelu(up x))."""
        super().__init__()
        if head_width is None and width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}; change one of them")
        self.heads, self.gated = heads, gated
        inner = width if head_width is None else heads * head_width
        self.attention_norm = block_norm(norm, width)
        self.query_key_value = nn.Linear(width, 3 * inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)
        self.mlp_norm = block_norm(norm, width)
        self.widen = nn.Linear(width, 2 * feed_forward if gated else feed_forward, bias=bias)
        self.narrow = nn.Linear(feed_forward, width, bias=bias)
        scales = [None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale)) for _ in range(2)]
        self.attention_scale, self.mlp_scale = scales

    def forward(self, x: Tensor, visible: Tensor | None = None, rotary: Rotary | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: [B, T, width].
            visible: attention mask [T, T], True where attention is allowed; None: everywhere.
            rotary: of the T positions; None: no rotary embedding.
        Returns:
            [B, T, width].
        """
        query, key, value = self._heads(self.query_key_value(self.attention_norm(x)), rotary)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = self._add(x, self.out(attended.transpose(1, 2).flatten(2)), self.attention_scale)
        inner = self.widen(self.mlp_norm(x))
        if self.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = F.silu(gate) * up
        else:
            inner = F.gelu(inner)
        return self._add(x, self.narrow(inner), self.mlp_scale)

    def extend(self, x: Tensor, cache: Tensor, places: list[slice], new: slice, bias: Tensor, rotary: Rotary) -> Tensor:
        """`forward` of blocks of positions after earlier ones, without gradients. The bits of a block do not depend on
        the number of blocks.

        Args:
            x: [N, T, width], N blocks.
            cache: keys and values [2, H, M, E], keys after the rotary embedding. Those of the blocks are written.
            places: where each block is among the M positions, T of them.
            new: positions of the block that are new, in 0 .. T - 1; all of several blocks.
            bias: [N, T, M], 0 where attention is allowed and -inf elsewhere.
            rotary: [N, 1, T, E / 2].
        Returns:
            [N, T, width]; only those of the new positions have a meaning.
        """
        query, key, value = self._heads(linear_rows(self.query_key_value, self.attention_norm(x)), rotary)
        attended = torch.empty_like(query)
        for number, place in enumerate(places):
            cache[0, :, place][:, new] = key[number][:, new]
            cache[1, :, place][:, new] = value[number][:, new]
            one = query[number][None]
            attended[number] = F.scaled_dot_product_attention(one, cache[:1], cache[1:], attn_mask=bias[number])[0]
        x = self._add(x, linear_rows(self.out, attended.transpose(1, 2).flatten(2)), self.attention_scale)
        inner = linear_rows(self.widen, self.mlp_norm(x))
        if self.gated:
            gate, up = (part.contiguous() for part in inner.chunk(2, dim=-1))
            for block in gate:
                F.silu(block, inplace=True)
            inner = gate.mul_(up)
        else:
            for block in inner:
                torch.ops.aten.gelu.out(block, out=block)
        return self._add(x, linear_rows(self.narrow, inner), self.mlp_scale)

    def _heads(self, projected: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, 3 * width] -> queries, keys and values [B, H, T, E]."""
        query, key, value = projected.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (query, key, value) if rotary is None else (rotate(query, rotary), rotate(key, rotary), value)

    @staticmethod
    def _add(x: Tensor, change: Tensor, scale: Tensor | None) -> Tensor:
        return x + (change if scale is None else scale * change)


def linear_rows(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer of N blocks of rows, [N, T, inputs] -> [N, T, outputs]."""
    y = x.new_zeros(x.shape[0] * x.shape[1], layer.out_features)
    if layer.bias is not None:
        y.copy_(layer.bias)
    add_product(y, x.flatten(0, 1), layer.weight.T, len(x))
    return y.view(*x.shape[:2], -1)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the channel pairs (e, e + E/2) of [B, H, T, E]. Source: RoPE, arXiv:2104.09864."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = (part.to(x.dtype) for part in rotary)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotary_embedding(first: int, places: int, head: int, theta: float, device: torch.device) -> Rotary:
    """Of the positions first .. first + places - 1, for heads of width `head`. Attention depends on differences of
    positions only, so the angles are float64: a stream has no longest length."""
    rates = theta ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    angles = torch.arange(first, first + places, dtype=torch.float64)[:, None] * rates
    return angles.cos().float().to(device), angles.sin().float().to(device)


def sliding_window(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Attention mask [queries, keys] bool for the last `queries` of `keys` positions: each attends to the last
    `window` positions, itself included."""
    ages = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (ages >= 0) & (ages < window)
