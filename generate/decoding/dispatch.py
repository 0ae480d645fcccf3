"""The table of decoders: how the codes of each kind of model are generated (`LanguageModel.decode_plan`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from ...lm.models.base import DecodePlan, DecoderName, LanguageModel
from ...lm.models.causal import TokenLM
from ...tokenize.tokenizer import Tokenizer
from ..requests.request import Request
from .coarse_to_fine import (
    check_coarse_to_fine,
    generate_coarse_to_fine,
    partial_coarse_to_fine,
    warm_up_coarse_to_fine,
)
from .generate_codes import generate_codes, make_loop
from .generate_codes import warm_up as warm_up_steps
from .loop import DecodeLoop, Generated, Progress
from .masked import check_masked, generate_masked, partial_masked
from .next_scale import check_next_scale, generate_next_scale, partial_next_scale
from .partial_codes import partial_steps


@dataclass(frozen=True)
class Decoder:
    """The functions of a decoder; each takes the model first, then the request."""

    generate: Callable[[Any, Request, bool, Progress | None], Generated]
    check: Callable[[Any, Request], object]
    """Raises the errors of `generate`, without generating."""
    partial: Callable[[Any, Tokenizer, Request, int], Iterator[Tensor]]
    """Codes [1, K, T] of one row during generation, -1 where none has been sampled, at last all of them. The last
    argument is the number of frames between them, if the decoder works step by step. Arguments are checked at the call,
    not on first iteration."""
    warm_up: Callable[[Any, Request], None] | None = None
    """Compiles or captures the decode steps; None: the decoder has no such steps."""


DECODERS: dict[DecoderName, Decoder] = {
    "autoregressive": Decoder(generate_codes, make_loop, partial_steps, warm_up_steps),
    "masked": Decoder(generate_masked, check_masked, partial_masked),
    "next_scale": Decoder(generate_next_scale, check_next_scale, partial_next_scale),
    "coarse_to_fine": Decoder(
        generate_coarse_to_fine, check_coarse_to_fine, partial_coarse_to_fine, warm_up_coarse_to_fine
    ),
}


def make_codes(lm: LanguageModel, request: Request, exact: bool, on_progress: Progress | None = None) -> Generated:
    """Generate the codes of a request with the model's decoder.

    Args:
        exact: generate the rows one at a time, so that not even kernel rounding depends on the batch.
        on_progress: called with (done, total).
    Raises:
        ValueError: the model's decode plan refuses the request, or a setting does not fit; names the setting.
    """
    return _decoder_for(lm, request).generate(lm, request, exact, on_progress)


def check_codes(lm: LanguageModel, request: Request) -> None:
    """Raise the errors of `make_codes` before generation."""
    _decoder_for(lm, request).check(lm, request)


def partial_codes(lm: LanguageModel, tokenizer: Tokenizer, request: Request, every: int) -> Iterator[Tensor]:
    """Codes of one row during generation, see `Decoder.partial`; errors as in `make_codes`, raised at the call."""
    return _decoder_for(lm, request).partial(lm, tokenizer, request, every)


def decode_loop(lm: LanguageModel, request: Request) -> DecodeLoop:
    """The decode loop of a model whose frames become final in order (`DecodePlan.in_order`)."""
    assert lm.decode_plan.in_order
    return make_loop(cast(TokenLM, lm), request)


def warm_up(lm: LanguageModel, request: Request) -> None:
    """Prepare the decode steps of requests like this one; see `generate_codes.warm_up`."""
    prepare = DECODERS[lm.decode_plan.decoder].warm_up
    if prepare is not None:
        prepare(lm, request)


def _decoder_for(lm: LanguageModel, request: Request) -> Decoder:
    check_plan(lm.decode_plan, request)
    return DECODERS[lm.decode_plan.decoder]


def check_plan(plan: DecodePlan, request: Request) -> None:
    """Raise ValueError if a decode plan refuses a request."""
    if plan.incomplete:
        raise ValueError(plan.incomplete)
    for name in plan.refused:
        if getattr(request.config, name):
            raise ValueError(f"{name} was set, but {plan.why}; leave it out")
    if plan.fixed_length and not request.length.fixed:
        raise ValueError(f"a {plan.decoder} model needs the number of frames; pass num_frames")
