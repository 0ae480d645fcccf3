"""From logits to ids: temperature, top-k, top-p and min-p, each a single value or one per codebook.

The filters apply in this order, each to the renormalized result of the previous one: temperature, top-k, top-p. min-p
compares with the largest probability, so its position does not matter. The most probable id is always kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...lm.generation_config import GenerationConfig
from . import triton_sampling
from .filter_tensors import Filters

NOT_NUMBERS = (
    "the model's logits are not numbers (NaN or infinite), or exclude every code; its weights are damaged or "
    "its dtype is too small"
)
"""Error message if `drawable` is False."""


def make_filters(config: GenerationConfig, num_codebooks: int, device: torch.device | str = "cpu") -> Filters:
    """The filters of K codebooks: temperature, top_k, top_p, min_p.

    Raises:
        ValueError: a setting has several values, but not K.
    """
    temperature, top_k, top_p, min_p = (
        per_codebook(name, getattr(config, name), num_codebooks) for name in ("temperature", "top_k", "top_p", "min_p")
    )
    return Filters(
        temperature=torch.tensor([t or 1.0 for t in temperature], dtype=torch.float64, device=device),
        greedy=torch.tensor([t == 0 for t in temperature], device=device),
        top_k=torch.tensor([k or 1 << 40 for k in top_k], device=device),
        top_p=torch.tensor(top_p, dtype=torch.float64, device=device),
        min_p=torch.tensor(min_p, dtype=torch.float64, device=device),
        sorts=any(p < 1 for p in top_p),
        largest_k=max(top_k),
    )


def sample(logits: Tensor, uniforms: Tensor, filters: Filters) -> Tensor:
    """Sample one id per row and codebook by inverse transform sampling at a given uniform number.

    Args:
        logits: [B, K, V], floating point, -inf for forbidden ids.
        uniforms: [B, K] in (0, 1), float64 (see counter_rng.py). The same number gives the same id.
        filters: from `make_filters`.
    Returns:
        ids [B, K], long, always from 0 to V - 1. A cell that cannot be sampled from (NaN, inf, or -inf everywhere)
        returns the id of its largest logit; callers check for such cells with `drawable`, because a check here would
        synchronize with the device.

    The computation is in float64 and over ids in index order: a rounding error of the logits then moves the borders
    between ids slightly and hardly ever changes a draw. In sorted order, two nearly equal ids could swap intervals.
    """
    logits = logits.double()
    if not filters.sorts and logits.shape[-1] <= triton_sampling.MAX_VALUES and triton_sampling.supports(logits):
        return triton_sampling.sample(logits, uniforms, filters)
    # Subtract the largest logit first: no temperature makes the quotient overflow, and the likeliest id has weight 1.
    weights = torch.exp((logits - logits.amax(dim=-1, keepdim=True)) / filters.temperature[:, None])
    weights = torch.where(_kept(weights, filters), weights, 0.0)
    cumulative = weights.cumsum(dim=-1)
    target = uniforms[..., None] * cumulative[..., -1:]  # below the total, as that is at least 1
    drawn = _first_above(cumulative, target, weights) if weights.is_cuda else (cumulative <= target).sum(dim=-1)
    return torch.where(filters.greedy | (drawn == logits.shape[-1]), logits.argmax(dim=-1), drawn)


def drawable(logits: Tensor) -> Tensor:
    """True [] if every cell of logits [*, V] can be sampled from: no NaN, no inf, not -inf everywhere."""
    return logits.amax(dim=-1).isfinite().all()


def _first_above(cumulative: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The first id [B, K] of nonzero weight whose cumulative sum [B, K, V] exceeds the target, V if there is none.
    Parallel sums, as on a GPU, are not always monotonic."""
    ids = torch.arange(weights.shape[-1], device=weights.device)
    return torch.where((cumulative > target) & (weights > 0), ids, len(ids)).amin(dim=-1)


def _kept(probabilities: Tensor, filters: Filters) -> Tensor:
    """True [B, K, V] for ids that pass all filters, given probabilities divided by the largest one. Ties rank by
    id."""
    kept = probabilities >= filters.min_p[:, None]
    if filters.sorts:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(ordered.shape[-1], device=ordered.device)
        ordered = torch.where(rank < filters.top_k[:, None], ordered, 0.0)
        before = ordered.cumsum(dim=-1) - ordered
        passed = (ordered > 0) & (before < filters.top_p[:, None] * ordered.sum(dim=-1, keepdim=True))
        passed = passed | (rank == 0)
        kept &= torch.zeros_like(passed).scatter(-1, order, passed)
    elif filters.largest_k:
        kept &= _largest(probabilities, filters)
    return kept


def _largest(probabilities: Tensor, filters: Filters) -> Tensor:
    """True [B, K, V] for the k most probable ids. Sorting all of them would take ten times as long."""
    V = probabilities.shape[-1]
    k = filters.top_k.clamp(max=V)[:, None]
    best = probabilities.topk(min(filters.largest_k, V), dim=-1).values
    # A codebook without a limit has k = V and keeps all its ids.
    least = best.gather(-1, (k - 1).clamp(max=best.shape[-1] - 1).expand(*best.shape[:-1], 1))
    above, equal = probabilities > least, probabilities == least
    remaining = k - above.sum(dim=-1, keepdim=True)
    return torch.where(k < V, above | (equal & (equal.cumsum(dim=-1) <= remaining)), True)


def per_codebook(name: str, value: Any, num_codebooks: int) -> list:
    """Expand a setting of one or K values to K values; ValueError names it if it has another number of values."""
    values = list(value) if isinstance(value, tuple) else [value] * num_codebooks
    if len(values) != num_codebooks:
        raise ValueError(
            f"{name} has {len(values)} values but the model has {num_codebooks} codebooks; "
            f"give one value or {num_codebooks}"
        )
    return values
