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

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...lm.generation_config import check_unordered
from ...lm.models.next_scale import NextScaleLM
from ...tokenize.tokenizer import Tokenizer
from ..requests.request import Request
from ..requests.settings import check_seeds
from ..sampling.counter_rng import uniform
from ..sampling.filters import NOT_NUMBERS, drawable, make_filters, sample
from ..sampling.guidance import ClassifierFreeGuidance
from .loop import Generated, Progress
from .masked import check_whole_prompt, run_rows, whole_rows


@torch.no_grad()
def generate_scales(
    lm: NextScaleLM,
    request: Request,
    exact: bool = False,
    on_progress: Progress | None = None,
    num_scales: int | None = None,
) -> Tensor:
    """Generate the codes of a batch.

    Args:
        request: the progress of its guidance goes from 0 at the first scale to 1 at the last; its prompt [B, 1, t] are
            the codes of the first t cells.
        exact: run the rows one at a time, so that not even kernel rounding depends on the batch.
        on_progress: called with (done, total), in scales times rows.
        num_scales: generate only this number of leading scales; None: all.
    Returns:
        codes [B, 1, T] long on the CPU, T the number of cells of the generated scales.
    Raises:
        ValueError: settings that contradict each other or the model; names the setting.
    """
    guide = check_scales(lm, request)
    S, total = lm.num_scales if num_scales is None else num_scales, len(request.seeds)
    if not 1 <= S <= lm.num_scales:
        raise ValueError(f"num_scales must be 1 to {lm.num_scales}, the scales of '{lm.spec.name}', found {num_scales}")

    def run(rows: slice) -> Tensor:
        batch = request.rows(rows.start, rows.stop)
        if exact:
            batch = replace(batch, conditions=batch.conditions.trimmed())
        drawn = []
        for codes in _scales(lm, batch, guide, S):
            drawn.append(codes)
            if on_progress is not None:
                on_progress(rows.start * S + len(drawn) * (rows.stop - rows.start), total * S)
        return torch.cat(drawn, dim=1).unsqueeze(1).cpu()

    return run_rows(run, total, exact)


def scale_by_scale(lm: NextScaleLM, request: Request) -> Iterator[Tensor]:
    """`generate_scales` scale by scale: yields the codes [B, 1, T] of all cells after each scale, -1 where not sampled
    yet. The last ones equal the result of `generate_scales`; arguments and errors as there."""
    scales = _scales(lm, request, check_scales(lm, request), lm.num_scales)
    return _with_missing(scales, len(request.seeds), sum(lm.counts))


def generate_next_scale(
    lm: NextScaleLM, request: Request, exact: bool = False, on_progress: Progress | None = None
) -> Generated:
    """Generate the codes of a request; arguments and errors as for `generate_scales`."""
    check_whole_prompt(lm, request)
    return whole_rows(generate_scales(lm, request, exact=exact, on_progress=on_progress))


def check_next_scale(lm: NextScaleLM, request: Request) -> None:
    """Raise the errors of `generate_next_scale`."""
    check_whole_prompt(lm, request)
    check_scales(lm, request)


def partial_next_scale(lm: NextScaleLM, tokenizer: Tokenizer, request: Request, every: int) -> Iterator[Tensor]:
    """Partial codes [1, 1, T] after each scale; see `dispatch.Decoder.partial`."""
    check_whole_prompt(lm, request)
    return scale_by_scale(lm, request)


def check_scales(lm: NextScaleLM, request: Request) -> ClassifierFreeGuidance:
    """Check the arguments of `generate_scales`, with its ValueErrors; returns the checked guidance."""
    check_unordered(request.config, "next-scale")
    check_seeds(request.seeds)
    lm.check_conditions(request.conditions, len(request.seeds))
    lm.check_cache(request.config.cache)
    make_filters(request.config, 1)
    return ClassifierFreeGuidance(request.config.guidance, lm, lm.num_scales, max(1, lm.num_scales - 1))


def _with_missing(scales: Iterator[Tensor], num_rows: int, total: int) -> Iterator[Tensor]:
    codes, made = torch.full((num_rows, 1, total), -1), 0
    for scale in scales:
        codes[:, 0, made : made + scale.shape[1]] = scale
        made += scale.shape[1]
        yield codes.clone()


@torch.no_grad()
def _scales(lm: NextScaleLM, request: Request, guide: ClassifierFreeGuidance, num_scales: int) -> Iterator[Tensor]:
    """Yield the codes [B, n] of each scale."""
    seeds, prompt = request.seeds, None if request.prompt is None else request.prompt[:, 0].to(lm.device)
    B, device, sub_tokens = len(seeds), lm.device, lm.head.sub_tokens
    books = torch.tensor(sub_tokens.codebooks, device=device)
    filters = make_filters(request.config, 1, device).of(list(sub_tokens.codebooks))
    numbers = torch.tensor(seeds, dtype=torch.long, device=device)
    conditions = guide.conditions(request.conditions.to(device))
    state = lm.begin(conditions, B * guide.branches, request.config.cache)
    codes = None
    for number, n in enumerate(lm.counts[:num_scales]):
        logits = lm.step_scale(state, None if codes is None else guide.rows(codes)).double()
        if not bool(drawable(logits)):
            raise ValueError(NOT_NUMBERS)
        logits_BnJV = guide(logits.transpose(1, 2).unflatten(0, (-1, B)), number, books)
        cells = uniform(numbers, number, n * len(sub_tokens)).view(B, n, len(sub_tokens))
        codes = sub_tokens.join(sample(logits_BnJV, cells, filters).transpose(1, 2))[:, 0]
        first = sum(lm.counts[:number])
        if prompt is not None and prompt.shape[1] > first:
            known = prompt[:, first : first + n]
            codes = torch.cat([known, codes[:, known.shape[1] :]], dim=1)
        yield codes
