"""Attention by flash-attn 2 (arXiv:2307.08691). Only this file imports flash_attn.

Its kernels support half precision on CUDA devices and no dense masks. Unsupported calls fall back to sdpa.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .mask_types import AttentionMask, CacheLength, PackedSequences
from .sdpa import sdpa

MAX_HEAD_WIDTH = 256
"""Largest head width that the kernels support."""


def flash(queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, causal: bool) -> Tensor:
    """Implements `registry.Attend`.

    Packed sequences use flash_attn_varlen_func, steps after a KV cache flash_attn_with_kvcache (which has no backward
    pass), whole sequences flash_attn_func.
    """
    if queries.dtype not in (torch.float16, torch.bfloat16) or queries.shape[3] > MAX_HEAD_WIDTH:
        return sdpa(queries, keys, values, mask, causal)
    if isinstance(mask, PackedSequences):
        return _packed(queries, keys, values, mask)
    if isinstance(mask, CacheLength):
        return _after_cache(queries, keys, values, mask)
    if mask is not None:
        return sdpa(queries, keys, values, mask, causal)
    q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))  # [B, S, H, E], flash-attn's layout
    return _package().flash_attn_func(q, k, v, causal=causal, deterministic=_deterministic()).transpose(1, 2)


def _packed(queries: Tensor, keys: Tensor, values: Tensor, rows: PackedSequences) -> Tensor:
    if rows.window is not None and any(rows.prefixes):  # its window does not support a prefix
        return sdpa(queries, keys, values, rows, False)
    q, k, v = (x[0].transpose(0, 1) for x in (queries, keys, values))  # [N, H, E]
    mixed = _package().flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=rows.query_starts,
        cu_seqlens_k=rows.key_starts,
        max_seqlen_q=max(rows.lengths),
        max_seqlen_k=max(rows.key_lengths),
        causal=rows.causal,
        window_size=(-1, -1) if rows.window is None else (rows.window - 1, 0),
        deterministic=_deterministic(),
    )
    return mixed.transpose(0, 1).unsqueeze(0)


def _after_cache(queries: Tensor, keys: Tensor, values: Tensor, counted: CacheLength) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
    count = counted.count
    if isinstance(count, Tensor):
        count = count.to(torch.int32).expand(q.shape[0]).contiguous()
    # The cache already contains the new keys; causal is aligned to the last of them.
    return _package().flash_attn_with_kvcache(q, k, v, cache_seqlens=count, causal=True).transpose(1, 2)


def _deterministic() -> bool:
    """Its backward pass sums in nondeterministic order unless deterministic is set."""
    return torch.are_deterministic_algorithms_enabled()


def _package() -> Any:
    import flash_attn  # pyright: ignore[reportMissingImports]

    return flash_attn
