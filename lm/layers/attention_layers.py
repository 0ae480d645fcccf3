"""Self-attention and cross-attention with grouped queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.mask_types import AttentionMask, PackedSequences
from ..attention.registry import Attend
from ..kv_cache.base import Cache
from ..ops.linear import Linear, with_zero_bias
from ..ops.rotary import at_least_float32, rotate
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
        self.qkv = with_zero_bias(Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=config.qkv_bias))
        self.query_norm = RMSNorm(self.head_width) if qk_norm is True else None
        self.key_norm = RMSNorm(self.head_width) if qk_norm is True else None
        self.out = with_zero_bias(Linear(heads * self.head_width, width, bias=config.bias))

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
        rotated = self.normalize(rotated)
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

    def normalize(self, heads: Tensor) -> Tensor:
        """Queries, then keys [B, S, H + G, E], normalized if the model does."""
        if self.query_norm is None or self.key_norm is None:
            return heads
        H = self.heads
        return torch.cat([self.query_norm(heads[:, :, :H]), self.key_norm(heads[:, :, H:])], dim=2)


class L2SelfAttention(SelfAttention):
    """Self-attention over queries and keys of length 1: products are multiplied by a learned factor of the head, at
    most 100, and not by 1 / sqrt(E). A class of its own: the fused steps know `SelfAttention` only.

    Source: VAR, arXiv:2404.02905 (FoundationVision/VAR, MIT: models/basic_var.py); Swin v2, arXiv:2111.09883.
    """

    def __init__(self, config: TransformerConfig, attend: Attend):
        super().__init__(config, attend)
        self.log_factor = nn.Parameter(torch.full((self.heads,), math.log(4.0)))
        """[H]."""

    def normalize(self, heads: Tensor) -> Tensor:
        """See SelfAttention."""
        H, E = self.heads, self.head_width
        factor = self.log_factor.clamp(max=math.log(100.0)).exp() * math.sqrt(E)  # `attend` divides by sqrt(E)
        unit = F.normalize(at_least_float32(heads), dim=-1)
        return torch.cat([unit[:, :, :H] * factor[:, None], unit[:, :, H:]], dim=2).to(heads.dtype)


class CrossAttention(nn.Module):
    """Cross-attention to the conditions; `project_memory` computes keys and values once per generation."""

    def __init__(self, config: TransformerConfig, attend: Attend):
        super().__init__()
        width, heads, kv_heads, qk_norm = config.width, config.heads, config.kv_heads, config.qk_norm
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, config.head_width
        self.attend = attend
        self.query = Linear(width, heads * self.head_width, bias=False)
        self.key_value = Linear(width, 2 * kv_heads * self.head_width, bias=False)
        self.query_norm = RMSNorm(self.head_width) if qk_norm is True else None
        self.key_norm = RMSNorm(self.head_width) if qk_norm is True else None
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
