"""Sound longer than a model has learned to make at once, in windows that overlap (MusicGen's extend_stride).

Drawn for window 6, stride 4, and 12 frames; what stands in brackets is given to the next window as its prompt:

    window 0    0 1 2 3[4 5]
    window 1           [4 5]6 7[8 9]
    window 2                   [8 9]10 11

Memory is that of one window, however long the sound: a window's cache is dropped with it. A model that was trained with
a window of its own (`lm.window`) needs none of this: its ring cache goes on for ever.
Source: audiocraft (MusicGen, arXiv:2306.05284), 18 of 30 seconds.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...lm.models.causal import TokenLM
from ...lm.models.masked import MaskedLM
from ...lm.models.registry import AnyLM
from ..decoding.custom_lm import Wrapped
from ..decoding.dispatch import check_codes, make_codes, start_loop
from ..decoding.loop import DecodeLoop, Generated
from ..requests.request import Request
from ..requests.settings import Length
from ..sampling.counter_rng import derived_seed


class Making:
    """Codes [K, n] as they become final, to be iterated over once; then `ended` says whether the sample came to its own
    end."""

    def __init__(self, frames: Generator[Tensor, None, bool]):
        self._frames, self.ended = frames, False

    def __iter__(self) -> Iterator[Tensor]:
        self.ended = yield from self._frames


def beyond(codes: Tensor, count: int, skip: int) -> Tensor:
    """Of codes [K, n] that follow `count` others, those beyond the first `skip` of all."""
    return codes[:, max(0, skip - count) :]


def make_row(lm: AnyLM, row: Request) -> Generator[Tensor, None, bool]:
    """Codes [K, n] of a request of one row as they become final, its prompt first; returns whether it ended.

    Models that make all frames together give them at once. What is wrong with the request is raised at the call, not
    when the first codes are asked for.
    """
    if row.window is None or row.length.max_frames <= row.window:
        return _begin(lm, row)
    given = None if row.prompt is None else row.prompt[0]
    before = 0
    if given is not None and given.shape[1] >= row.window:
        before = given.shape[1] - (row.window - row.stride)
    context = None if given is None else given[:, before:]
    first = None if given is None or not before else given[:, :before]
    begun = _begin(lm, _in_window(row, row.window, context, 0, before))
    return _in_windows(lm, row, row.window, first, before, begun)


def _begin(lm: AnyLM, row: Request) -> Generator[Tensor, None, bool]:
    """`make_row` without windows."""
    if isinstance(lm, MaskedLM) or not isinstance(lm, TokenLM | Wrapped):
        check_codes(lm, row)
        return _all_at_once(lm, row)
    return _step_by_step(start_loop(lm, row))


def _all_at_once(lm: AnyLM, row: Request) -> Generator[Tensor, None, bool]:
    made: Generated = make_codes(lm, row, exact=True)
    yield made.codes[0, :, : int(made.lengths[0])]
    return bool(made.ended[0])


def _step_by_step(loop: DecodeLoop) -> Generator[Tensor, None, bool]:
    yield from loop.frames()
    return bool(loop.board.ended[0])


def _in_windows(
    lm: AnyLM,
    row: Request,
    window: int,
    first: Tensor | None,
    before: int,
    begun: Generator[Tensor, None, bool],
) -> Generator[Tensor, None, bool]:
    """Codes of the prompt before the first window, if any, and then window by window; `before` frames stand before
    the one that has begun."""
    overlap, length = window - row.stride, row.length
    number = skip = 0  # skip: frames of a window's context that have been handed on already
    if first is not None:
        yield first
    while True:
        size = min(window, length.max_frames - before)
        count, kept, making = 0, [], Making(begun)
        for codes in making:
            fresh = beyond(codes, count, skip)
            count += codes.shape[1]
            kept.append(codes)
            if fresh.shape[1]:
                yield fresh
        if count < size or before + size >= length.max_frames:
            return making.ended
        skip, number, before = overlap, number + 1, before + size - overlap
        begun = _begin(lm, _in_window(row, window, _last(kept, overlap), number, before))


def _in_window(row: Request, window: int, context: Tensor | None, number: int, before: int) -> Request:
    """The request of one window, which begins with the context [K, n]; `before` frames stand before it."""
    length = row.length
    size = min(window, length.max_frames - before)
    return replace(
        row,
        prompt=context[None] if context is not None and context.shape[1] else None,
        seeds=[derived_seed(row.seeds[0], number)],
        length=Length(size, min(max(length.min_frames - before, 0), size), length.fixed),
        window=None,
    )


def _last(pieces: list[Tensor], count: int) -> Tensor:
    """The last `count` frames of pieces [K, n]."""
    codes = torch.cat(pieces, dim=1)
    return codes[:, codes.shape[1] - count :]
