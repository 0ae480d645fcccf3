"""From logits to ids: temperature, top-k, top-p and min-p, each a single value or one per codebook.

`SamplingConfig` also holds the settings of token_sampler.py: repetition, end and silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lm.generation_config import RANGES
from . import triton_sampling
from .filter_tensors import Filters

NOT_NUMBERS = (
    "the model's logits are not numbers (NaN or infinite), or leave nothing to draw; its weights are damaged or its "
    "dtype too small"
)
"""Error message if `drawable` is False."""


@dataclass(frozen=True)
class SamplingConfig:
    """How ids are sampled. Each field is one value, or K values (one per codebook, coarse first).

    The filters apply in this order, each to the renormalized result of the previous one: temperature, top-k, top-p.
    min-p compares with the largest probability, so its position does not matter. The most probable id is always kept.
    """

    temperature: float | Sequence[float] = 1.0
    """0 takes the most probable id."""
    top_k: int | Sequence[int] = 0
    """Keep the k most probable ids; 0 keeps all."""
    top_p: float | Sequence[float] = 1.0
    """Keep the fewest most probable ids whose probabilities sum to at least p; 1 keeps all."""
    min_p: float | Sequence[float] = 0.0
    """Drop ids less probable than min_p times the most probable one; 0 keeps all."""
    repetition_penalty: float | Sequence[float] = 1.0
    """Before the filters, positive logits of recent codes are divided by it, negative ones multiplied; 1: off."""
    repetition_window: int | Sequence[int] = 16
    """Number of recent frames the penalty considers."""
    ras: int | Sequence[int] = 0
    """Window of repetition-aware sampling in frames; 0: off. VALL-E 2 uses 10."""
    ras_tau: float | Sequence[float] = 0.1
    """An id that makes up at least this share of the last `ras` codes is resampled from the unfiltered distribution."""
    end_bias: float = 0.0
    """Added to the logit of the end; rows end sooner if it is above 0."""
    end_rule: str = "drawn"
    """drawn, or likeliest: the end can be sampled only if no other id is likelier."""
    max_silence_frames: int = 0
    """Maximum number of consecutive silent codes of codebook 0; 0: no limit."""
    silence_codes: Sequence[int] = ()
    """The silent codes of codebook 0 (see silence.py)."""


def check_unordered(sampling: SamplingConfig, kind: str) -> None:
    """Raise ValueError for settings that depend on earlier codes; a `kind` model does not sample codes in order."""
    plain = SamplingConfig(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    for name, value in vars(sampling).items():
        if value != getattr(plain, name) and name != "repetition_window" and name != "ras_tau":
            raise ValueError(f"{name} is {value}, but a {kind} model does not fill codes in order; leave it out")


def make_filters(sampling: SamplingConfig, num_codebooks: int, device: torch.device | str = "cpu") -> Filters:
    """Check the settings and expand them to K codebooks.

    Raises:
        ValueError: a list that is not K long, or a value out of range; names the setting and what was found.
    """
    K = num_codebooks
    temperature = per_codebook("temperature", sampling.temperature, K, "at least 0", lambda x: 0 <= x <= 1e9)
    top_k = per_codebook("top_k", sampling.top_k, K, "a whole number, at least 0", lambda x: x >= 0 and x % 1 == 0)
    top_k = per_codebook("top_k", top_k, K, *RANGES["top_k"])
    top_p = per_codebook("top_p", sampling.top_p, K, "above 0 and at most 1", lambda x: 0 < x <= 1)
    min_p = per_codebook("min_p", sampling.min_p, K, "from 0 to 1", lambda x: 0 <= x <= 1)
    return Filters(
        temperature=torch.tensor([t or 1.0 for t in temperature], dtype=torch.float64, device=device),
        greedy=torch.tensor([t == 0 for t in temperature], device=device),
        top_k=torch.tensor([int(k) or 1 << 40 for k in top_k], device=device),
        top_p=torch.tensor(top_p, dtype=torch.float64, device=device),
        min_p=torch.tensor(min_p, dtype=torch.float64, device=device),
        sorts=any(p < 1 for p in top_p),
        largest_k=int(max(top_k)),
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
    if not filters.sorts and logits.shape[-1] <= triton_sampling.MOST_VALUES and triton_sampling.takes(logits):
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
    room = k - above.sum(dim=-1, keepdim=True)
    return torch.where(k < V, above | (equal & (equal.cumsum(dim=-1) <= room)), True)


def per_codebook(name: str, value, num_codebooks: int, allowed: str, is_allowed) -> list:
    """Expand a setting of one or K values to K values; ValueError names it if the count or a value is invalid."""
    values = list(value) if isinstance(value, list | tuple) else [value] * num_codebooks
    if len(values) != num_codebooks:
        raise ValueError(
            f"{name} has {len(values)} values but the model has {num_codebooks} codebooks; "
            f"give one value or {num_codebooks}"
        )
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int | float) or not is_allowed(one):
            raise ValueError(f"{name} must be {allowed}, found {one!r}")
    return values
