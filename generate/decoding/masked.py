"""Masked decoding: each pass samples all hidden codes in parallel and keeps the most confident ones.

Example with 6 codes and 3 passes; kept codes never change:

    hidden           .  .  .  .  .  .
    pass 0 draws     a  b  c  d  e  f      keeps d
    pass 1 draws     g  h  i  d  k  l      keeps g and l
    pass 2 draws     g  m  n  d  o  l      keeps all

A `bits` head splits a code into several sub-tokens, which are sampled and kept independently.
The number of codes kept in each pass depends only on the row's own number of codes. Each draw, and each choice between
equally confident cells, depends only on (seed, pass, cell). A row is therefore the same in any batch.
Sources: MaskGIT (arXiv:2202.04200) for confidence, its noise and the cosine schedule; MaskBit (arXiv:2409.16211) for
cells of (position, codebook).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...lm.generation_config import GenerationConfig, check_unordered
from ...lm.models.base import LanguageModel
from ...lm.models.masked import MaskedLM
from ...lm.ops.near_ties import largest
from ...tokenize.codes import pad_and_cat
from ...tokenize.tokenizer import Tokenizer
from ..requests.request import Request
from ..requests.settings import check_prompt, check_seeds
from ..sampling.counter_rng import uniform
from ..sampling.filters import NOT_NUMBERS, drawable, make_filters, sample
from ..sampling.guidance import ClassifierFreeGuidance
from .loop import Generated, Progress

CODES, CHOICES, TIES = 8, 9, 10
"""Draw indices of a cell's random numbers: for sampling codes, for ranking cells, and for breaking ties; the decode
loop uses lower ones."""

AS_SURE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Difference, in nats, below which two cells are equally confident, by dtype: far above kernel rounding. If everything
is hidden and positions are encoded only by rotation (RoPE), all cells of a row have the same logits."""
AS_SURE_IN_HALF = 0.125
"""The same for models in half precision."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda u: math.cos(math.pi / 2 * u),
    "linear": lambda u: 1 - u,
    "square": lambda u: 1 - u**2,
    "root": lambda u: 1 - u**0.5,
    "arccos": lambda u: math.acos(u) * 2 / math.pi,
}
"""Fraction of codes still hidden after the fraction u of the passes: 1 at 0, 0 at 1."""


DEFAULT_PASSES = 12
"""Default number of passes of a masked model; a refiner takes one."""


def num_passes(lm: MaskedLM, config: GenerationConfig) -> int:
    """Maximum number of passes, at most one per code: `passes`, else 1 for a refiner and DEFAULT_PASSES for others."""
    return config.passes or (1 if lm.clustering is not None else DEFAULT_PASSES)


@torch.no_grad()
def fill_codes(
    lm: MaskedLM,
    request: Request,
    lengths: Tensor | None = None,
    coarse: Tensor | None = None,
    exact: bool = False,
    on_progress: Progress | None = None,
) -> Tensor:
    """Generate the codes of a batch.

    Args:
        request: the steps of its guidance are the passes.
        lengths: [B] long, frames of each row, at least 1; None: request.length.max_frames.
        coarse: [B, K, T] coarse labels, for a refiner.
        exact: run the rows one at a time, so that not even kernel rounding depends on the batch.
        on_progress: called with (done, total), in passes times rows.
    Returns:
        codes [B, K, T] long on the CPU, T the longest row; 0 beyond a row's length.
    Raises:
        ValueError: settings that contradict each other or the model; names the setting.
    """
    lengths = all_lengths(request) if lengths is None else lengths
    guide = check_filling(lm, request, lengths)
    passes, total = num_passes(lm, request.config), len(request.seeds)

    def run(rows: slice) -> Tensor:
        own = lengths[rows]
        T = int(own.max())
        batch = request.rows(rows.start, rows.stop)
        if exact:
            batch = replace(batch, conditions=batch.conditions.trimmed())
        if batch.prompt is not None:
            batch = replace(batch, prompt=batch.prompt[:, :, :T])
        labels = None if coarse is None else coarse[rows, :, :T]
        for done, codes in enumerate(_fill(lm, batch, own, labels, guide), 1):
            if on_progress is not None:
                on_progress(rows.start * passes + done * (rows.stop - rows.start), total * passes)
            if done == passes:
                return codes.cpu()
        raise AssertionError("there is at least one pass")

    return run_rows(run, total, exact)


def all_lengths(request: Request) -> Tensor:
    """[B] long: max_frames for every row."""
    return torch.full((len(request.seeds),), request.length.max_frames, dtype=torch.long)


def run_rows(run: Callable[[slice], Tensor], total: int, exact: bool) -> Tensor:
    """Codes [B, K, T] of `run` for all rows, one at a time if `exact`; 0 beyond a row's length."""
    if not exact:
        return run(slice(0, total))
    return pad_and_cat([run(slice(i, i + 1)) for i in range(total)])


def fill_in_passes(
    lm: MaskedLM, request: Request, lengths: Tensor | None = None, coarse: Tensor | None = None
) -> Iterator[Tensor]:
    """`fill_codes` pass by pass: yields the codes [B, K, T] after each pass, -1 where still hidden. The last ones equal
    the result of `fill_codes`; arguments and errors as there."""
    lengths = all_lengths(request) if lengths is None else lengths
    return _fill(lm, request, lengths, coarse, check_filling(lm, request, lengths))


def generate_masked(
    lm: MaskedLM, request: Request, exact: bool = False, on_progress: Progress | None = None
) -> Generated:
    """Generate the codes of a request; arguments and errors as for `fill_codes`."""
    check_whole_prompt(lm, request)
    return whole_rows(fill_codes(lm, request, exact=exact, on_progress=on_progress))


def check_masked(lm: MaskedLM, request: Request) -> None:
    """Raise the errors of `generate_masked`."""
    check_whole_prompt(lm, request)
    check_filling(lm, request, all_lengths(request))


def partial_masked(lm: MaskedLM, tokenizer: Tokenizer, request: Request, every: int) -> Iterator[Tensor]:
    """Partial codes [1, K, T] after each pass; see `dispatch.Decoder.partial`."""
    check_whole_prompt(lm, request)
    return fill_in_passes(lm, request)


def check_whole_prompt(lm: LanguageModel, request: Request) -> None:
    """Check the prompt of a decoder that does not read it step by step."""
    if request.prompt is not None:
        check_prompt(request.prompt, len(request.seeds), lm.spec.cardinalities, request.length)


def whole_rows(codes: Tensor) -> Generated:
    """Codes [B, K, T] of samples that all have T frames."""
    B, T = len(codes), codes.shape[2]
    return Generated(codes, torch.full((B,), T, dtype=torch.long), torch.ones(B, dtype=torch.bool))


def check_filling(lm: MaskedLM, request: Request, lengths: Tensor) -> ClassifierFreeGuidance:
    """Check the arguments of `fill_codes`, with its ValueErrors; returns the checked guidance."""
    check_unordered(request.config, "masked")
    check_seeds(request.seeds)
    if lengths.shape != (len(request.seeds),) or int(lengths.min()) < 1:
        raise ValueError(
            f"lengths must be {len(request.seeds)} numbers of frames, at least 1, found {lengths.tolist()}"
        )
    lm.check_conditions(request.conditions, len(request.seeds))
    make_filters(request.config, lm.num_codebooks)
    return ClassifierFreeGuidance(request.config.guidance, lm, num_passes(lm, request.config))


@torch.no_grad()
def _fill(
    lm: MaskedLM, request: Request, lengths: Tensor, coarse: Tensor | None, guide: ClassifierFreeGuidance
) -> Iterator[Tensor]:
    """Yield the codes [B, K, T] after each pass, -1 where a sub-token is still hidden."""
    config, seeds, prompt = request.config, request.seeds, request.prompt
    B, T, device, sub_tokens = len(seeds), int(lengths.max()), lm.device, lm.head.sub_tokens
    J = len(sub_tokens)
    lengths = lengths.to(device)
    filters = make_filters(config, lm.num_codebooks, device).of(list(sub_tokens.codebooks))
    numbers = torch.tensor(seeds, dtype=torch.long, device=device)
    inside = torch.arange(T, device=device) < lengths[:, None]
    some_end = None if bool((lengths == T).all()) else lengths
    made = torch.zeros(B, J, T, dtype=torch.long, device=device)
    hidden = inside.unsqueeze(1).repeat(1, J, 1)
    if prompt is not None:
        made[:, :, : prompt.shape[2]] = sub_tokens.split(prompt.to(device))
        hidden[:, :, : prompt.shape[2]] = False
    coarse = None if coarse is None else coarse.to(device)
    conditions = guide.conditions(request.conditions.to(device))
    frames, close = lm.config.masking.unit == "frame", AS_SURE.get(lm.dtype, AS_SURE_IN_HALF)
    N, books = num_passes(lm, config), torch.tensor(sub_tokens.codebooks, device=device)
    remaining = remaining_counts(_units(hidden, frames).sum(1).tolist(), N, config.pass_schedule).to(device)

    for number in range(N):
        given = [
            None if part is None else guide.rows(part) for part in (sub_tokens.join(made), hidden, some_end, coarse)
        ]
        logits = lm(given[0], given[1], given[2], conditions, given[3]).double()
        if not bool(drawable(logits)):
            raise ValueError(NOT_NUMBERS)
        logits_BTJV = guide(logits.transpose(1, 2).unflatten(0, (-1, B)), number, books)
        cells = uniform(numbers, number, T * J, draw=CODES).view(B, T, J)
        drawn_BTJ = sample(logits_BTJV, cells, filters)
        sure = logits_BTJV.log_softmax(-1).gather(-1, drawn_BTJ.unsqueeze(-1)).squeeze(-1).transpose(1, 2)
        sure = torch.where(hidden, sure, 0.0)
        sure = (sure.sum(dim=1, keepdim=True) if frames else sure).clamp(min=torch.finfo(sure.dtype).min)
        noise = config.choice_temperature * (1 - (number + 1) / N)
        if noise:
            chance = uniform(numbers, number, T * sure.shape[1], draw=CHOICES).view(B, T, -1).transpose(1, 2)
            sure = sure - noise * torch.log(-torch.log(chance))
        open_ = _units(hidden, frames)
        # Cells in frame order, so that their random numbers do not depend on the padding of the row.
        ranked = sure.transpose(1, 2).flatten(1).masked_fill(~open_, -torch.inf)
        count = (open_.sum(1) - remaining[:, number + 1])[:, None]
        kept = largest(ranked, count, uniform(numbers, number, ranked.shape[1], draw=TIES), close)
        kept = kept.view(B, T, -1).transpose(1, 2).expand(B, J, T) & hidden
        made = torch.where(kept, drawn_BTJ.transpose(1, 2), made)
        hidden = hidden & ~kept
        yield sub_tokens.join(made).masked_fill(hidden.unflatten(1, (-1, sub_tokens.parts)).any(dim=2), -1)


def remaining_counts(counts: Sequence[int], passes: int, schedule: str) -> Tensor:
    """Number of hidden codes of each row before the first pass and after each pass: [B, passes + 1] long.

    After pass i of N it is the schedule's fraction of all codes, but each pass keeps at least one code while any are
    hidden and leaves at least one for each later pass. With fewer codes than passes, the last passes do nothing.
    """
    rows = []
    for count in counts:
        row = [count]
        for done in range(1, passes + 1):
            wanted = math.floor(count * SCHEDULES[schedule](done / passes) + 1e-9)  # 10 * (1 - 0.9) is below 1
            row.append(max(0, min(count, passes) - done, min(wanted, row[-1] - 1)))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.long)


def _units(hidden: Tensor, frames: bool) -> Tensor:
    """Hidden units in frame order: the cells [B, T * J] of hidden [B, J, T], or the frames [B, T] with hidden cells."""
    return hidden.any(dim=1) if frames else hidden.transpose(1, 2).flatten(1)
