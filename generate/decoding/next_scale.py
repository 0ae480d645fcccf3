"""Next-scale decoding: samples all cells of a scale in parallel, then predicts the next scale from their sum.

    scale 0        draws a                        cache: conditions, 1 cell
    scale 1        reads a, draws b b b b         cache: 4 cells more
    scale 2        reads a and b, draws 16        ...                           as many steps as scales

The cells of a scale are independent given the previous scales. Each cell has its own random number, a function of
(seed, scale, cell), so a row is the same in any batch. The codes of a prompt are kept unchanged.
A large model may generate the first scales and a small one the rest: `generate_scales(small,
prompt=generate_scales(large, num_scales=4))` (CoDe, arXiv:2411.17787).
Source: VAR, arXiv:2404.02905.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...lm.conditioning.batch import ConditionBatch
from ...lm.generation_config import Guidance
from ...lm.kv_cache.config import CacheChoice
from ...lm.models.next_scale import NextScaleLM
from ..requests.settings import check_seeds
from ..sampling.counter_rng import uniform
from ..sampling.filters import NOT_NUMBERS, SamplingConfig, check_unordered, drawable, make_filters, sample
from ..sampling.guidance import ClassifierFreeGuidance
from .loop import Progress, one_row
from .masked import run_rows


@torch.no_grad()
def generate_scales(
    lm: NextScaleLM,
    conditions: ConditionBatch | None,
    seeds: Sequence[int],
    sampling: SamplingConfig | None = None,
    guidance: Guidance = 1.0,
    prompt: Tensor | None = None,
    exact: bool = False,
    on_progress: Progress | None = None,
    cache: CacheChoice | None = None,
    num_scales: int | None = None,
) -> Tensor:
    """Generate the codes of a batch.

    Args:
        conditions: B rows; None if the model has none.
        seeds: B 64-bit whole numbers. All randomness of row i is a function of seeds[i].
        guidance: as in `generate_codes`; its progress goes from 0 at the first scale to 1 at the last.
        prompt: given codes [B, 1, t] of the first t cells; None: none.
        exact: run the rows one at a time, so that not even kernel rounding depends on the batch.
        on_progress: called with (done, total), in scales times rows.
        num_scales: generate only this number of leading scales; None: all.
    Returns:
        codes [B, 1, T] long on the CPU, T the number of cells of the generated scales.
    Raises:
        ValueError: settings that contradict each other or the model; names the setting.
    """
    sampling = sampling or SamplingConfig()
    guide = prepare_scales(lm, conditions, seeds, sampling, guidance, prompt, cache)
    S, total = lm.num_scales if num_scales is None else num_scales, len(seeds)
    if not 1 <= S <= lm.num_scales:
        raise ValueError(f"num_scales must be 1 to {lm.num_scales}, the scales of '{lm.spec.name}', found {num_scales}")

    def run(rows: slice) -> Tensor:
        given = one_row(conditions, rows.start) if conditions is not None and exact else conditions
        known = None if prompt is None else prompt[rows, 0].to(lm.device)
        drawn = []
        for codes in _scales(lm, given, list(seeds[rows]), sampling, guide, known, cache, S):
            drawn.append(codes)
            if on_progress is not None:
                on_progress(rows.start * S + len(drawn) * (rows.stop - rows.start), total * S)
        return torch.cat(drawn, dim=1).unsqueeze(1).cpu()

    return run_rows(run, total, exact)


def scale_by_scale(
    lm: NextScaleLM,
    conditions: ConditionBatch | None,
    seeds: Sequence[int],
    sampling: SamplingConfig | None = None,
    guidance: Guidance = 1.0,
    prompt: Tensor | None = None,
    cache: CacheChoice | None = None,
) -> Iterator[Tensor]:
    """`generate_scales` scale by scale: yields the codes [B, 1, T] of all cells after each scale, -1 where not sampled
    yet. The last ones equal the result of `generate_scales`; arguments and errors as there."""
    sampling = sampling or SamplingConfig()
    guide = prepare_scales(lm, conditions, seeds, sampling, guidance, prompt, cache)
    known = None if prompt is None else prompt[:, 0].to(lm.device)
    scales = _scales(lm, conditions, list(seeds), sampling, guide, known, cache, lm.num_scales)
    return _with_missing(scales, len(seeds), sum(lm.counts))


def prepare_scales(
    lm: NextScaleLM,
    conditions: ConditionBatch | None,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    guidance: Guidance,
    prompt: Tensor | None = None,
    cache: CacheChoice | None = None,
) -> ClassifierFreeGuidance:
    """Check the arguments of `generate_scales`, with its ValueErrors; returns the checked guidance."""
    check_unordered(sampling, "next-scale")
    check_seeds(seeds)
    lm.check_conditions(conditions or ConditionBatch(), len(seeds))
    lm.check_cache(cache)
    make_filters(sampling, 1)
    return ClassifierFreeGuidance(guidance, lm, lm.num_scales, max(1, lm.num_scales - 1))


def _with_missing(scales: Iterator[Tensor], num_rows: int, total: int) -> Iterator[Tensor]:
    codes, made = torch.full((num_rows, 1, total), -1), 0
    for scale in scales:
        codes[:, 0, made : made + scale.shape[1]] = scale
        made += scale.shape[1]
        yield codes.clone()


@torch.no_grad()
def _scales(
    lm: NextScaleLM,
    conditions: ConditionBatch | None,
    seeds: list[int],
    sampling: SamplingConfig,
    guide: ClassifierFreeGuidance,
    prompt: Tensor | None,
    cache: CacheChoice | None,
    num_scales: int,
) -> Iterator[Tensor]:
    """Yield the codes [B, n] of each scale."""
    B, device, symbols = len(seeds), lm.device, lm.head.symbols
    books = torch.tensor(symbols.codebooks, device=device)
    filters = make_filters(sampling, 1, device).of(list(symbols.codebooks))
    numbers = torch.tensor(seeds, dtype=torch.long, device=device)
    conditions = None if conditions is None else guide.conditions(conditions.to(device))
    state = lm.begin(conditions, B * guide.branches, cache)
    codes = None
    for number, n in enumerate(lm.counts[:num_scales]):
        logits = lm.step_scale(state, None if codes is None else guide.rows(codes)).double()
        if not bool(drawable(logits)):
            raise ValueError(NOT_NUMBERS)
        logits_BnJV = guide(logits.transpose(1, 2).unflatten(0, (-1, B)), number, books)
        cells = uniform(numbers, number, n * len(symbols)).view(B, n, len(symbols))
        codes = symbols.join(sample(logits_BnJV, cells, filters).transpose(1, 2))[:, 0]
        first = sum(lm.counts[:number])
        if prompt is not None and prompt.shape[1] > first:
            known = prompt[:, first : first + n]
            codes = torch.cat([known, codes[:, known.shape[1] :]], dim=1)
        yield codes
