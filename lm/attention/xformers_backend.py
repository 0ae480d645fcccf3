"""Attention by xformers' memory_efficient_attention. Only this file imports xformers.

Dense masks fall back to sdpa: xformers requires them padded and copied for every head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .mask_types import AttentionMask, CacheLength, PackedSequences
from .sdpa import sdpa


def xformers(queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, causal: bool) -> Tensor:
    """Implements `registry.Attend`; packed sequences use block-diagonal biases."""
    dense = mask is not None and not isinstance(mask, PackedSequences)
    windowed = isinstance(mask, PackedSequences) and mask.window is not None
    if dense or windowed or isinstance(mask, CacheLength) or queries.dtype == torch.float64:
        return sdpa(queries, keys, values, mask, causal)
    ops = _package()
    if isinstance(mask, PackedSequences):
        rows = mask
        bias = rows.cached("xformers", lambda: _bias(ops, rows))
    else:
        bias = ops.LowerTriangularMask() if causal else None
    group = queries.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))  # [B, S, H, E], xformers' layout
    return ops.memory_efficient_attention(q, k, v, attn_bias=bias).transpose(1, 2)


def _bias(ops: Any, rows: PackedSequences) -> Any:
    kinds = ops.fmha.attn_bias
    if rows.causal:
        return kinds.BlockDiagonalCausalMask.from_seqlens(rows.lengths, device=rows.device)
    return kinds.BlockDiagonalMask.from_seqlens(rows.lengths, rows.key_lengths, device=rows.device)


def _package() -> Any:
    import xformers.ops  # pyright: ignore[reportMissingImports]

    return xformers.ops
