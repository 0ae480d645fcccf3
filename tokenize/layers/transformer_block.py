"""Transformer block for tokenizers: pre-norm attention and MLP, with a KV cache for sliding-window attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Past = tuple[Tensor, Tensor]
"""KV cache: keys and values [B, H, n, E] of previous positions, before the rotary embedding."""


class AttentionBlock(nn.Module):
    """x + scale * attention(norm(x)), then x + scale * MLP(norm(x)); channel-last."""

    def __init__(self, width: int, heads: int, feed_forward: int, bias: bool = True, layer_scale: float | None = None):
        """`layer_scale` is the initial value of the learned factor per channel; None: no factor."""
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}; change one of them")
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.mlp_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, feed_forward, bias=bias)
        self.narrow = nn.Linear(feed_forward, width, bias=bias)
        scales = [None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale)) for _ in range(2)]
        self.attention_scale, self.mlp_scale = scales

    def forward(
        self, x: Tensor, visible: Tensor | None = None, past: Past | None = None, rotary: Tensor | None = None
    ) -> tuple[Tensor, Past]:
        """Apply the block.

        Args:
            x: [B, T, width].
            visible: attention mask [T, n + T] bool, True where attention is allowed; None: everywhere.
            past: KV cache of the n positions before x.
            rotary: angles [n + T, E / 2] of all positions; None: no rotary embedding.
        Returns:
            [B, T, width], and the KV cache of all n + T positions.
        """
        query, key, value = self.query_key_value(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).unbind(2)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        seen = (key, value)
        if rotary is not None:
            query, key = rotate(query, rotary[-query.shape[2] :]), rotate(key, rotary)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        attended = self.out(attended.transpose(1, 2).flatten(2))
        x = x + (attended if self.attention_scale is None else self.attention_scale * attended)
        changed = self.narrow(F.gelu(self.widen(self.mlp_norm(x))))
        return x + (changed if self.mlp_scale is None else self.mlp_scale * changed), seen


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the channel pairs (e, e + E/2) of [B, H, T, E] by angles [T, E/2]. Source: RoPE, arXiv:2104.09864."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotary_angles(places: int, head: int, theta: float, device: torch.device) -> Tensor:
    """Angles [places, head / 2], float32; attention depends only on position differences."""
    rates = theta ** (-torch.arange(0, head, 2, device=device) / head)
    return torch.arange(places, device=device)[:, None] * rates


def sliding_window(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Attention mask [queries, keys] bool for the last `queries` of `keys` positions: each attends to the last
    `window` positions, itself included."""
    ages = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (ages >= 0) & (ages < window)
