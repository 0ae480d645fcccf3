"""Coarse-to-fine decoding: a model generates coarse labels step by step, its refiner then all codes in passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...lm.models.coarse_to_fine import CoarseToFine
from ...tokenize.tokenizer import Tokenizer
from ..requests.request import Request
from .generate_codes import generate_codes, make_loop, warm_up
from .loop import DecodeLoop, Generated, Progress
from .masked import check_filling, check_whole_prompt, fill_codes, fill_in_passes, num_passes
from .partial_codes import codes_so_far


def generate_coarse_to_fine(
    lm: CoarseToFine, request: Request, exact: bool = False, on_progress: Progress | None = None
) -> Generated:
    """Generate the labels, then the codes; see `generate_codes` and `fill_codes` for arguments and errors."""
    check_refiner(lm, request)
    B = len(request.seeds)
    steps = lm.coarse.arrangement.num_steps(request.length.max_frames) * B
    passes = num_passes(lm.refiner, request.config) * B

    def report_steps(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done, steps + passes)

    def report_passes(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(steps + done, steps + passes)

    labels = generate_codes(lm.coarse, label_request(lm, request), exact, report_steps)
    if not int(labels.lengths.max()):
        return labels
    fine, lengths = refiner_request(lm, request, labels)
    codes = fill_codes(lm.refiner, fine, lengths, labels.codes, exact, report_passes)
    beyond = torch.arange(codes.shape[2]) >= labels.lengths[:, None, None]
    return Generated(codes.masked_fill(beyond, 0), labels.lengths, labels.ended)


def check_coarse_to_fine(lm: CoarseToFine, request: Request) -> None:
    """Raise the errors of both stages."""
    make_loop(lm.coarse, label_request(lm, request))
    check_refiner(lm, request)


def check_refiner(lm: CoarseToFine, request: Request) -> None:
    """Check the settings of the second stage before the first stage runs."""
    check_filling(lm.refiner, _for_refiner(lm, request), torch.ones(len(request.seeds), dtype=torch.long))


def partial_coarse_to_fine(lm: CoarseToFine, tokenizer: Tokenizer, request: Request, every: int) -> Iterator[Tensor]:
    """Partial codes [1, K, T] (`Decoder.partial`): first the central codes of the coarse labels' clusters, then the
    refiner's codes as they replace them."""
    check_refiner(lm, request)
    return _partial(lm, tokenizer, request, make_loop(lm.coarse, label_request(lm, request)), every)


def _partial(
    lm: CoarseToFine, tokenizer: Tokenizer, request: Request, loop: DecodeLoop, every: int
) -> Iterator[Tensor]:
    central = lm.clustering.medoids(tokenizer.vectors())
    for labels in codes_so_far(loop, every):
        yield lm.clustering.codes_of(labels.cpu(), central)
    made = loop.result()
    sketch = lm.clustering.codes_of(made.codes, central)
    fine, lengths = refiner_request(lm, request, made)
    for codes in fill_in_passes(lm.refiner, fine, lengths, made.codes):
        yield torch.where(codes.cpu() < 0, sketch, codes.cpu())


def warm_up_coarse_to_fine(lm: CoarseToFine, request: Request) -> None:
    """Prepare the decode steps of the first stage."""
    warm_up(lm.coarse, replace(request, conditions=lm.for_coarse(request.conditions)))


def label_request(lm: CoarseToFine, request: Request) -> Request:
    """The request for the model of the coarse labels."""
    config, prompt = request.config, request.prompt
    check_whole_prompt(lm, request)
    if config.silence_codes:
        silent = lm.clustering.labels[0, list(config.silence_codes)]
        config = config.model_copy(update={"silence_codes": tuple(sorted(set(silent.tolist())))})
    labels = None if prompt is None else lm.clustering.coarse(prompt)
    return replace(request, conditions=lm.for_coarse(request.conditions), prompt=labels, config=config)


def refiner_request(lm: CoarseToFine, request: Request, labels: Generated) -> tuple[Request, Tensor]:
    """The request for the refiner, and the lengths [B] of its rows, given the generated labels."""
    lengths = labels.lengths.clamp(min=1)  # an empty row is filled as one frame and cut afterwards
    return _for_refiner(lm, request), lengths


def _for_refiner(lm: CoarseToFine, request: Request) -> Request:
    return replace(request, conditions=lm.for_refiner(request.conditions), config=request.config.for_refiner())
