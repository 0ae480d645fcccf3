"""The codes sampled so far by a decode loop, for images that are shown during generation."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ...lm.models.causal import TokenLM
from ...tokenize.tokenizer import Tokenizer
from ..requests.request import Request
from .generate_codes import make_loop
from .loop import DecodeLoop


def partial_steps(lm: TokenLM, tokenizer: Tokenizer, request: Request, every: int) -> Iterator[Tensor]:
    """Partial codes [1, K, T] of an autoregressive model; see `dispatch.Decoder.partial`."""
    return codes_so_far(make_loop(lm, request), every)


def codes_so_far(loop: DecodeLoop, every: int) -> Iterator[Tensor]:
    """Yield the codes [1, K, T] of an image, -1 where none has been sampled yet, once per `every` frames' share of the
    steps, and finally all codes."""
    steps, shown = every * loop.num_steps / loop.length.max_frames, 0
    while not loop.done:
        loop.step()
        if loop.position >= steps * (shown + 1) and not loop.done:
            shown += 1
            yield loop.so_far()
    yield loop.result().codes
