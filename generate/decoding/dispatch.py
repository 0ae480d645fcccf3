"""Selects the decoding method for a model: autoregressive, masked, next-scale, or coarse labels followed by a
refiner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...lm.conditioning.batch import ConditionBatch
from ...lm.generation_config import Guidance
from ...lm.models.causal import TokenLM
from ...lm.models.coarse_to_fine import CoarseToFine
from ...lm.models.masked import MaskedLM
from ...lm.models.next_scale import NextScaleLM
from ...lm.models.registry import AnyLM
from ..requests.request import Request
from ..requests.settings import Filling, check_prompt
from ..sampling.filters import SamplingConfig
from .generate_codes import generate_codes, make_loop
from .generate_codes import warm_up as warm_up_steps
from .loop import DecodeLoop, Generated, Progress
from .masked import check_filling, fill_codes
from .next_scale import generate_scales, prepare_scales


def make_codes(lm: AnyLM, rows: Request, exact: bool, on_progress: Progress | None = None) -> Generated:
    """Generate codes for a request's rows; see `generate_codes` and `fill_codes`.

    Raises:
        ValueError: a refiner without the model of its labels; and as in those functions.
    """
    if isinstance(lm, CoarseToFine):
        return _coarse_then_fine(lm, rows, exact, on_progress)
    if isinstance(lm, MaskedLM):
        args = masked_arguments(lm, rows)
        codes = fill_codes(*args, exact=exact, on_progress=on_progress)
        return Generated(codes, args.lengths, torch.ones(len(rows.seeds), dtype=torch.bool))
    if isinstance(lm, NextScaleLM):
        codes = generate_scales(**scale_arguments(lm, rows), exact=exact, on_progress=on_progress)
        lengths = torch.full((len(rows.seeds),), codes.shape[2], dtype=torch.long)
        return Generated(codes, lengths, torch.ones(len(rows.seeds), dtype=torch.bool))
    return generate_codes(**_of_loop(lm, rows), exact=exact, on_progress=on_progress)


def check_codes(lm: AnyLM, rows: Request) -> None:
    """Raise the errors of `make_codes` before generation, for models that decode in passes, scales or stages."""
    if isinstance(lm, CoarseToFine):
        start_loop(lm.coarse, label_rows(lm, rows))
        check_refiner(lm, rows)
    elif isinstance(lm, MaskedLM):
        check_filling(*masked_arguments(lm, rows)[:-2])
    elif isinstance(lm, NextScaleLM):
        prepare_scales(**scale_arguments(lm, rows))


def check_refiner(lm: CoarseToFine, rows: Request) -> None:
    """Check the settings of the second stage before the first stage runs."""
    lengths = torch.ones(len(rows.seeds), dtype=torch.long)
    conditions = lm.for_refiner(rows.conditions)
    check_filling(lm.refiner, conditions, rows.seeds, lengths, rows.filling, rows.fine, rows.fine_guidance)


def warm_up(lm: AnyLM, rows: Request) -> None:
    """Prepare a request's decode steps; see `generate_codes.warm_up`. Models that work in whole passes need nothing."""
    conditions = rows.conditions
    if isinstance(lm, CoarseToFine):
        lm, conditions = lm.coarse, lm.for_coarse(conditions)
    if isinstance(lm, TokenLM) and not isinstance(lm, MaskedLM | NextScaleLM):
        warm_up_steps(
            lm, conditions, rows.length, rows.sampling, rows.guidance, rows.cache, rows.draft, rows.step,
            len(rows.seeds),
        )  # fmt: skip


def start_loop(lm: TokenLM, rows: Request) -> DecodeLoop:
    """The decode loop of a request's rows."""
    return make_loop(**_of_loop(lm, rows))


class MaskedArguments(NamedTuple):
    """Arguments of `fill_codes` and `fill_in_passes`."""

    lm: MaskedLM
    conditions: ConditionBatch | None
    seeds: list[int]
    lengths: Tensor
    filling: Filling
    sampling: SamplingConfig
    guidance: Guidance
    prompt: Tensor | None
    coarse: Tensor | None


def masked_arguments(lm: MaskedLM, rows: Request) -> MaskedArguments:
    """Arguments for a masked model without a coarse model; errors as in `make_codes`."""
    if lm.clustering is not None:
        raise ValueError(
            "this model refines coarse labels and has none to begin with; export it together with the model of its "
            "labels (export.coarse_model in its config)"
        )
    for name, value in (("cache", rows.cache), ("draft", rows.draft)):
        if value:
            raise ValueError(f"{name} was set, but a masked model fills codes in whole passes; leave it out")
    if not rows.length.fixed:
        raise ValueError("a masked model must be told the number of frames; pass num_frames")
    lengths = torch.full((len(rows.seeds),), rows.length.max_frames, dtype=torch.long)
    return MaskedArguments(
        lm, rows.conditions, rows.seeds, lengths, rows.filling, rows.sampling, rows.guidance, _prompt(lm, rows), None
    )


def scale_arguments(lm: NextScaleLM, rows: Request) -> dict[str, Any]:
    """Arguments of `generate_scales` and `scale_by_scale`; errors as in `make_codes`."""
    if rows.draft:
        raise ValueError("draft was set, but a next-scale model makes whole scales; leave it out")
    names = ("conditions", "seeds", "sampling", "guidance", "cache")
    return {"lm": lm, "prompt": _prompt(lm, rows), **{name: getattr(rows, name) for name in names}}


def label_rows(lm: CoarseToFine, rows: Request) -> Request:
    """The request for the model of the coarse labels."""
    prompt, sampling = _prompt(lm.refiner, rows), rows.sampling
    if sampling.silence_codes:
        silent = lm.clustering.labels[0, list(sampling.silence_codes)]
        sampling = replace(sampling, silence_codes=sorted(set(silent.tolist())))
    labels = None if prompt is None else lm.clustering.coarse(prompt)
    return replace(rows, conditions=lm.for_coarse(rows.conditions), prompt=labels, sampling=sampling)


def refiner_arguments(lm: CoarseToFine, rows: Request, labels: Generated) -> MaskedArguments:
    """Arguments for the refiner, given the generated labels."""
    lengths = labels.lengths.clamp(min=1)  # an empty row is filled as one frame and cut afterwards
    return MaskedArguments(
        lm.refiner, lm.for_refiner(rows.conditions), rows.seeds, lengths, rows.filling, rows.fine, rows.fine_guidance,
        _prompt(lm.refiner, rows), labels.codes,
    )  # fmt: skip


def _coarse_then_fine(lm: CoarseToFine, rows: Request, exact: bool, on_progress: Progress | None) -> Generated:
    check_refiner(lm, rows)
    B = len(rows.seeds)
    steps, passes = lm.coarse.arrangement.num_steps(rows.length.max_frames) * B, rows.filling.num_passes(lm.refiner) * B

    def first(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done, steps + passes)

    def second(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(steps + done, steps + passes)

    labels = generate_codes(**_of_loop(lm.coarse, label_rows(lm, rows)), exact=exact, on_progress=first)
    if not int(labels.lengths.max()):
        return labels
    codes = fill_codes(*refiner_arguments(lm, rows, labels), exact=exact, on_progress=second)
    beyond = torch.arange(codes.shape[2]) >= labels.lengths[:, None, None]
    return Generated(codes.masked_fill(beyond, 0), labels.lengths, labels.ended)


def _of_loop(lm: TokenLM, rows: Request) -> dict[str, Any]:
    """Arguments of `generate_codes` and `make_loop`."""
    names = ("conditions", "seeds", "length", "sampling", "guidance", "prompt", "cache", "draft", "step")
    return {"lm": lm, **{name: getattr(rows, name) for name in names}}


def _prompt(lm: TokenLM, rows: Request) -> Tensor | None:
    if rows.prompt is None:
        return None
    return check_prompt(rows.prompt, len(rows.seeds), lm.spec.cardinalities, rows.length)
