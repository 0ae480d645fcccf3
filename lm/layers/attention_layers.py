"""Self-attention and cross-attention with grouped queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention.mask_types import AttentionMask, PackedSequences
from ..attention.registry import Attend
from ..kv_cache.base import Cache
from ..ops.linear import Linear
from ..ops.rotary import rotate
from .config import TransformerConfig
from .norm import RMSNorm


@dataclass(frozen=True)
class Memory:
    """Keys and values of the conditions for cross-attention, computed once."""

    keys: list[Tensor]
    """Per layer [B, G, L, E]."""
    values: list[Tensor]
    mask: Tensor | PackedSequences | None
    """[B, 1, 1, L] bool, True on real tokens; None: all are real. `PackedSequences` if the tokens of all rows are
    packed (B is then 1)."""


class SelfAttention(nn.Module):
    """Grouped-query self-attention."""

    def __init__(self, config: TransformerConfig, attend: Attend):
        super().__init__()
        width, heads, kv_heads, qk_norm = config.width, config.heads, config.kv_heads, config.qk_norm
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, config.head_width
        self.attend = attend
        self.qkv = Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=config.qkv_bias)
        if self.qkv.bias is not None and not self.qkv.bias.is_meta:
            nn.init.zeros_(self.qkv.bias)
        self.query_norm = RMSNorm(self.head_width) if qk_norm else None
        self.key_norm = RMSNorm(self.head_width) if qk_norm else None
        self.out = Linear(heads * self.head_width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        table: Tensor | None,
        mask: AttentionMask,
        causal: bool,
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        B, S, _ = x.shape
        H, G = self.heads, self.kv_heads
        heads_BSHE = self.qkv(x).view(B, S, H + 2 * G, self.head_width)
        # split instead of slices: its backward concatenates gradients, while each slice allocates a tensor of zeros
        rotated, values = heads_BSHE.split([H + G, G], dim=2)
        values = values.transpose(1, 2)
        if self.query_norm is not None and self.key_norm is not None:
            rotated = torch.cat([self.query_norm(rotated[:, :, :H]), self.key_norm(rotated[:, :, H:])], dim=2)
        if table is not None:
            if cache is None or cache.rotated_keys:
                rotated = rotate(rotated, table)
            else:
                rotated = torch.cat([rotate(rotated[:, :, :H], table), rotated[:, :, H:]], dim=2)
        queries, keys = (x.transpose(1, 2) for x in rotated.split([H, G], dim=2))
        if cache is not None:
            keys, values, mask, causal = cache.write(layer, keys, values)
        mixed = self.attend(queries, keys, values, mask, causal)
        return self.out(mixed.transpose(1, 2).reshape(B, S, -1))


class CrossAttention(nn.Module):
    """Cross-attention to the conditions; `project_memory` computes keys and values once per generation."""

    def __init__(self, config: TransformerConfig, attend: Attend):
        super().__init__()
        width, heads, kv_heads, qk_norm = config.width, config.heads, config.kv_heads, config.qk_norm
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, config.head_width
        self.attend = attend
        self.query = Linear(width, heads * self.head_width, bias=False)
        self.key_value = Linear(width, 2 * kv_heads * self.head_width, bias=False)
        self.query_norm = RMSNorm(self.head_width) if qk_norm else None
        self.key_norm = RMSNorm(self.head_width) if qk_norm else None
        self.out = Linear(heads * self.head_width, width, bias=False)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, L, E] of memory [B, L, D]."""
        B, L, _ = memory.shape
        keys, values = self.key_value(memory).view(B, L, 2 * self.kv_heads, self.head_width).chunk(2, dim=2)
        if self.key_norm is not None:
            keys = self.key_norm(keys)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, table: Tensor | None = None
    ) -> Tensor:
        B, S, _ = x.shape
        queries = self.query(x).view(B, S, self.heads, self.head_width)
        if self.query_norm is not None:
            queries = self.query_norm(queries)
        queries = self.turn(queries, table)
        mixed = self.attend(queries.transpose(1, 2), keys, values, mask, False)
        return self.out(mixed.transpose(1, 2).reshape(B, S, -1))

    def turn(self, queries: Tensor, table: Tensor | None) -> Tensor:
        """Queries [B, S, H, E] as they meet the keys. table: rotary table of their positions."""
        return queries


class RotatedCrossAttention(CrossAttention):
    """Cross-attention whose queries are rotated by their positions, while its keys have none (Parler-TTS). A class of
    its own: the fused steps know `CrossAttention` only."""

    def turn(self, queries: Tensor, table: Tensor | None) -> Tensor:
        return queries if table is None else rotate(queries, table)
