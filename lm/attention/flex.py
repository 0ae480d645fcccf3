"""Attention by torch's flex_attention: one compiled kernel with the attention mask given as a function.

On CUDA devices the kernel is compiled once per kind of mask. On the CPU torch has no backward pass for it, and
compiling takes longer than most runs, so there it is interpreted: correct, slow, and for inference only.
Source: arXiv:2412.05496.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .mask_types import AttentionMask, PackedSequences, as_mask


def flex(queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, causal: bool) -> Tensor:
    """Implements `registry.Attend`.

    Raises:
        ValueError: gradients are required on the CPU.
    """
    device = queries.device
    if device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (queries, keys, values)):
        raise ValueError("attention 'flex' has no backward pass on the CPU; train with attention: sdpa")
    S, M = queries.shape[2], keys.shape[2]
    options: dict[str, Any] = {"enable_gqa": keys.shape[1] < queries.shape[1]}
    if isinstance(mask, PackedSequences):
        rows = mask
        options["block_mask"] = rows.cached("flex", lambda: _block_mask(_same_sequence(rows), S, M, device))
    elif mask is not None:
        options["score_mod"] = _score_mask(as_mask(mask, queries, keys))
    elif causal:
        options["block_mask"] = _causal(S, M, device)
    kernel = _compiled() if device.type == "cuda" else _interpreted
    return kernel(queries, keys, values, **options)


def _same_sequence(rows: PackedSequences) -> Callable[..., Tensor]:
    """Query and key positions -> whether the query attends to the key."""
    row_of, place_of = _numbered(rows.lengths, rows.device)
    key_row, key_place = (row_of, place_of) if rows.causal else _numbered(rows.key_lengths, rows.device)
    prefix = torch.tensor(rows.prefixes, device=rows.device)
    window = rows.window

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = row_of[query] == key_row[key]
        if rows.causal:
            back = place_of[query] - key_place[key]
            seen = seen & (back >= 0)
            if window is not None:
                seen = seen & ((back < window) | (key_place[key] < prefix[key_row[key]]))
        return seen

    return sees


def _numbered(lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For every position, its sequence and its place in it, both [N] long."""
    sizes = torch.tensor(lengths, device=device)
    row = torch.repeat_interleave(torch.arange(len(lengths), device=device), sizes)
    begins = sizes.cumsum(0) - sizes
    return row, torch.arange(len(row), device=device) - begins[row]


def _score_mask(mask: Tensor | None) -> Callable[..., Tensor]:
    """Set the scores of keys masked out by the mask, bool [B or 1, H or 1, S or 1, M], to -inf."""
    assert mask is not None
    rows, heads, steps = (size > 1 for size in mask.shape[:3])

    def score(found: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = mask[b if rows else b * 0, h if heads else h * 0, query if steps else query * 0, key]
        return torch.where(seen, found, -float("inf"))

    return score


@lru_cache(maxsize=16)
def _causal(S: int, M: int, device: torch.device) -> Any:
    return _block_mask(lambda b, h, query, key: query >= key, S, M, device)


def _block_mask(sees: Callable[..., Tensor], S: int, M: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(sees, None, None, S, M, device=device)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _interpreted(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not compiled
        return flex_attention(queries, keys, values, **options)
