"""From a request to codes, by the kind of the model: step by step, masked, scale by scale, or coarse labels first and
codes after."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..lm.kinds import AnyLM
from ..lm.masked import MaskedLM
from ..lm.model import TokenLM
from ..lm.next_scale import NextScaleLM
from ..lm.stages import CoarseToFine
from .filling import fill_codes
from .loop import Generated, Length, Progress, check_prompt, generate_codes
from .loop import warm_up as warm_up_steps
from .request import Request
from .scales import generate_scales


def make_codes(lm: AnyLM, rows: Request, exact: bool, on_progress: Progress | None = None) -> Generated:
    """Codes of a request's rows; see `generate_codes` and `fill_codes`.

    Raises:
        ValueError: a refiner without the model of its labels; and as those.
    """
    if isinstance(lm, CoarseToFine):
        return _coarse_then_fine(lm, rows, exact, on_progress)
    if isinstance(lm, MaskedLM):
        return _masked(lm, rows, exact, on_progress)
    if isinstance(lm, NextScaleLM):
        return _by_scales(lm, rows, exact, on_progress)
    return generate_codes(
        lm,
        rows.conditions,
        rows.seeds,
        rows.length,
        rows.sampling,
        rows.guidance,
        rows.prompt,
        exact,
        on_progress,
        rows.cache,
        rows.draft,
        rows.step,
    )


def warm_up(lm: AnyLM, rows: Request) -> None:
    """Make ready what a request's steps need; see `loop.warm_up`. Models that work in whole passes need nothing."""
    conditions = rows.conditions
    if isinstance(lm, CoarseToFine):
        lm, conditions = lm.coarse, lm.for_coarse(conditions)
    if isinstance(lm, TokenLM) and not isinstance(lm, MaskedLM | NextScaleLM):
        warm_up_steps(
            lm, conditions, rows.length, rows.sampling, rows.guidance, rows.cache, rows.draft, rows.step,
            len(rows.seeds),
        )  # fmt: skip


def _masked(lm: MaskedLM, rows: Request, exact: bool, on_progress: Progress | None) -> Generated:
    if lm.clustering is not None:
        raise ValueError(
            "this model refines coarse labels and has none to begin with; export it together with the model of its "
            "labels (export.coarse_model in its config)"
        )
    for name, value in (("cache", rows.cache), ("draft", rows.draft), ("step", rows.step != "auto")):
        if value:
            raise ValueError(f"{name} was set, but a masked model fills codes in whole passes; leave it out")
    lengths = _fixed(lm, rows.length, len(rows.seeds))
    prompt = _prompt(lm, rows)
    codes = fill_codes(
        lm, rows.conditions, rows.seeds, lengths, rows.filling, rows.sampling, rows.guidance, prompt, None, exact,
        on_progress,
    )  # fmt: skip
    return Generated(codes, lengths, torch.ones(len(rows.seeds), dtype=torch.bool))


def _by_scales(lm: NextScaleLM, rows: Request, exact: bool, on_progress: Progress | None) -> Generated:
    for name, value in (("draft", rows.draft), ("step", rows.step != "auto")):
        if value:
            raise ValueError(f"{name} was set, but a next-scale model makes whole scales; leave it out")
    codes = generate_scales(
        lm, rows.conditions, rows.seeds, rows.sampling, rows.guidance, _prompt(lm, rows), exact, on_progress, rows.cache
    )  # fmt: skip
    lengths = torch.full((len(rows.seeds),), codes.shape[2], dtype=torch.long)
    return Generated(codes, lengths, torch.ones(len(rows.seeds), dtype=torch.bool))


def _coarse_then_fine(lm: CoarseToFine, rows: Request, exact: bool, on_progress: Progress | None) -> Generated:
    B, prompt = len(rows.seeds), _prompt(lm.refiner, rows)
    steps, passes = lm.coarse.arrangement.num_steps(rows.length.max_frames) * B, rows.filling.num_passes(lm.refiner) * B

    def first(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done, steps + passes)

    def second(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(steps + done, steps + passes)

    sampling = rows.sampling
    if sampling.silence_codes:
        silent = lm.clustering.labels[0, list(sampling.silence_codes)]
        sampling = replace(sampling, silence_codes=sorted(set(silent.tolist())))
    labels = generate_codes(
        lm.coarse, lm.for_coarse(rows.conditions), rows.seeds, rows.length, sampling, rows.guidance,
        None if prompt is None else lm.clustering.coarse(prompt), exact, first, rows.cache, rows.draft,
        rows.step,
    )  # fmt: skip
    if not int(labels.lengths.max()):
        return labels
    lengths = labels.lengths.clamp(min=1)  # a row that ended at once is filled as one frame, and cut again
    codes = fill_codes(
        lm.refiner, lm.for_refiner(rows.conditions), rows.seeds, lengths, rows.filling, rows.fine, rows.fine_guidance,
        prompt, labels.codes, exact, second,
    )  # fmt: skip
    beyond = torch.arange(codes.shape[2]) >= labels.lengths[:, None, None]
    return Generated(codes.masked_fill(beyond, 0), labels.lengths, labels.ended)


def _fixed(lm: MaskedLM, length: Length, num_rows: int) -> torch.Tensor:
    if not length.fixed:
        raise ValueError("a masked model must be told the number of frames; pass num_frames")
    return torch.full((num_rows,), length.max_frames, dtype=torch.long)


def _prompt(lm: TokenLM, rows: Request) -> torch.Tensor | None:
    if rows.prompt is None:
        return None
    return check_prompt(rows.prompt, len(rows.seeds), lm.spec.cardinalities, rows.length)
