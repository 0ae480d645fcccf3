"""Selects the decoding method for a model: autoregressive, masked, next-scale, or coarse labels followed by a
refiner."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...lm.models.causal import TokenLM
from ...lm.models.coarse_to_fine import CoarseToFine
from ...lm.models.masked import MaskedLM
from ...lm.models.next_scale import NextScaleLM
from ...lm.models.registry import AnyLM
from ..requests.request import Request
from ..requests.settings import check_prompt
from .generate_codes import generate_codes, make_loop
from .generate_codes import warm_up as warm_up_steps
from .loop import Generated, Progress
from .masked import all_lengths, check_filling, fill_codes, num_passes
from .next_scale import check_scales, generate_scales


def make_codes(lm: AnyLM, rows: Request, exact: bool, on_progress: Progress | None = None) -> Generated:
    """Generate codes for a request's rows; see `generate_codes` and `fill_codes`.

    Raises:
        ValueError: a refiner without the model of its labels; and as in those functions.
    """
    if isinstance(lm, CoarseToFine):
        return _coarse_then_fine(lm, rows, exact, on_progress)
    if isinstance(lm, MaskedLM):
        rows = check_masked(lm, rows)
        return whole_rows(fill_codes(lm, rows, exact=exact, on_progress=on_progress))
    if isinstance(lm, NextScaleLM):
        rows = check_next_scale(lm, rows)
        return whole_rows(generate_scales(lm, rows, exact=exact, on_progress=on_progress))
    return generate_codes(lm, rows, exact, on_progress)


def whole_rows(codes: Tensor) -> Generated:
    """Codes [B, K, T] of samples that all have T frames."""
    B, T = len(codes), codes.shape[2]
    return Generated(codes, torch.full((B,), T, dtype=torch.long), torch.ones(B, dtype=torch.bool))


def check_codes(lm: AnyLM, rows: Request) -> None:
    """Raise the errors of `make_codes` before generation, for models that decode in passes, scales or stages."""
    if isinstance(lm, CoarseToFine):
        make_loop(lm.coarse, label_rows(lm, rows))
        check_refiner(lm, rows)
    elif isinstance(lm, MaskedLM):
        rows = check_masked(lm, rows)
        check_filling(lm, rows, all_lengths(rows))
    elif isinstance(lm, NextScaleLM):
        check_scales(lm, check_next_scale(lm, rows))


def check_refiner(lm: CoarseToFine, rows: Request) -> None:
    """Check the settings of the second stage before the first stage runs."""
    rows = replace(rows, conditions=lm.for_refiner(rows.conditions), config=rows.config.for_refiner())
    check_filling(lm.refiner, rows, torch.ones(len(rows.seeds), dtype=torch.long))


def warm_up(lm: AnyLM, rows: Request) -> None:
    """Prepare a request's decode steps; see `generate_codes.warm_up`. Models that work in whole passes need nothing."""
    if isinstance(lm, CoarseToFine):
        lm, rows = lm.coarse, replace(rows, conditions=lm.for_coarse(rows.conditions))
    if isinstance(lm, TokenLM) and not isinstance(lm, MaskedLM | NextScaleLM):
        warm_up_steps(lm, rows)


def check_masked(lm: MaskedLM, rows: Request) -> Request:
    """The request for a masked model without a coarse model; errors as in `make_codes`."""
    if lm.clustering is not None:
        raise ValueError(
            "this model refines coarse labels and has none to begin with; export it together with the model of its "
            "labels (export.coarse_model in its config)"
        )
    for name in ("cache", "draft"):
        if getattr(rows.config, name):
            raise ValueError(f"{name} was set, but a masked model fills codes in whole passes; leave it out")
    if not rows.length.fixed:
        raise ValueError("a masked model needs the number of frames; pass num_frames")
    _check_prompt(lm, rows)
    return rows


def check_next_scale(lm: NextScaleLM, rows: Request) -> Request:
    """The request for a next-scale model; errors as in `make_codes`."""
    if rows.config.draft:
        raise ValueError("draft was set, but a next-scale model makes whole scales; leave it out")
    _check_prompt(lm, rows)
    return rows


def label_rows(lm: CoarseToFine, rows: Request) -> Request:
    """The request for the model of the coarse labels."""
    config, prompt = rows.config, rows.prompt
    _check_prompt(lm.refiner, rows)
    if config.silence_codes:
        silent = lm.clustering.labels[0, list(config.silence_codes)]
        config = config.model_copy(update={"silence_codes": tuple(sorted(set(silent.tolist())))})
    labels = None if prompt is None else lm.clustering.coarse(prompt)
    return replace(rows, conditions=lm.for_coarse(rows.conditions), prompt=labels, config=config)


def refiner_rows(lm: CoarseToFine, rows: Request, labels: Generated) -> tuple[Request, Tensor]:
    """The request for the refiner, and the lengths [B] of its rows, given the generated labels."""
    lengths = labels.lengths.clamp(min=1)  # an empty row is filled as one frame and cut afterwards
    return replace(rows, conditions=lm.for_refiner(rows.conditions), config=rows.config.for_refiner()), lengths


def _coarse_then_fine(lm: CoarseToFine, rows: Request, exact: bool, on_progress: Progress | None) -> Generated:
    check_refiner(lm, rows)
    B = len(rows.seeds)
    steps = lm.coarse.arrangement.num_steps(rows.length.max_frames) * B
    passes = num_passes(lm.refiner, rows.config) * B

    def first(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done, steps + passes)

    def second(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(steps + done, steps + passes)

    labels = generate_codes(lm.coarse, label_rows(lm, rows), exact, first)
    if not int(labels.lengths.max()):
        return labels
    fine, lengths = refiner_rows(lm, rows, labels)
    codes = fill_codes(lm.refiner, fine, lengths, labels.codes, exact, second)
    beyond = torch.arange(codes.shape[2]) >= labels.lengths[:, None, None]
    return Generated(codes.masked_fill(beyond, 0), labels.lengths, labels.ended)


def _check_prompt(lm: TokenLM, rows: Request) -> None:
    if rows.prompt is not None:
        check_prompt(rows.prompt, len(rows.seeds), lm.spec.cardinalities, rows.length)
