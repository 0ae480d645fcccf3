"""Sliding windows for audio longer than the training examples (MusicGen's extend_stride).

Example with window 6, stride 4, and 12 frames; frames in brackets are the prompt of the next window:

    window 0    0 1 2 3[4 5]
    window 1           [4 5]6 7[8 9]
    window 2                   [8 9]10 11

Memory use is that of one window for any length, because each window's cache is dropped with it. A model trained with
sliding-window attention (`lm.window`) does not need this: its ring cache has no length limit.
Source: audiocraft (MusicGen, arXiv:2306.05284), 18 of 30 seconds.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...lm.models.base import LanguageModel
from ..decoding.dispatch import check_codes, decode_loop, make_codes
from ..decoding.loop import DecodeLoop, Generated
from ..requests.request import Request
from ..requests.settings import Length
from ..sampling.counter_rng import derived_seed


@dataclass(frozen=True)
class RowEnd:
    """What is known of a row at its end."""

    ended: bool
    """It ended by itself."""
    units: tuple[Tensor, ...] = ()
    """[T] long of each chunk: the unit of an aligned text that each frame speaks; empty: no such text."""


class Making:
    """Single-use iterator over codes [K, n] as they become final; afterwards it holds the row's end."""

    def __init__(self, frames: Generator[Tensor, None, RowEnd]):
        self._frames, self.end = frames, RowEnd(False)

    def __iter__(self) -> Iterator[Tensor]:
        self.end = yield from self._frames

    @property
    def ended(self) -> bool:
        """Whether the sample ended by itself."""
        return self.end.ended


def beyond(codes: Tensor, count: int, skip: int) -> Tensor:
    """The part of codes [K, n], which follow `count` earlier frames, beyond the first `skip` frames of all."""
    return codes[:, max(0, skip - count) :]


def make_row(lm: LanguageModel, row: Request) -> Generator[Tensor, None, RowEnd]:
    """Yield the codes [K, n] of a one-row request as they become final, prompt first; returns its end.

    Models that generate all frames together yield them at once. Errors in the request are raised at the call, not on
    first iteration.
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


def _begin(lm: LanguageModel, row: Request) -> Generator[Tensor, None, RowEnd]:
    """`make_row` without windows."""
    if not lm.decode_plan.in_order:
        check_codes(lm, row)
        return _all_at_once(lm, row)
    return _step_by_step(decode_loop(lm, row))


def _all_at_once(lm: LanguageModel, row: Request) -> Generator[Tensor, None, RowEnd]:
    made: Generated = make_codes(lm, row, exact=True)
    yield made.codes[0, :, : int(made.lengths[0])]
    return RowEnd(bool(made.ended[0]))


def _step_by_step(loop: DecodeLoop) -> Generator[Tensor, None, RowEnd]:
    yield from loop.frames()
    made = loop.result()
    return RowEnd(bool(made.ended[0]), () if made.units is None else (made.units[0],))


def _in_windows(
    lm: LanguageModel,
    row: Request,
    window: int,
    first: Tensor | None,
    before: int,
    begun: Generator[Tensor, None, RowEnd],
) -> Generator[Tensor, None, RowEnd]:
    """Yield the prompt codes before the first window, if any, then the codes window by window; `before` frames precede
    the window that has begun."""
    overlap, length = window - row.stride, row.length
    number = skip = 0  # skip: frames of a window's context that were already yielded
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
            return RowEnd(making.ended)
        skip, number, before = overlap, number + 1, before + size - overlap
        begun = _begin(lm, _in_window(row, window, _last(kept, overlap), number, before))


def _in_window(row: Request, window: int, context: Tensor | None, number: int, before: int) -> Request:
    """The request for one window, which begins with the context [K, n]; `before` frames precede it."""
    length = row.length
    size = min(window, length.max_frames - before)
    return replace(
        row,
        prompt=context[None] if context is not None and context.shape[1] else None,
        seeds=[derived_seed(row.seeds[0], number)],
        length=Length(size, min(max(length.min_frames - before, 0), size), length.fixed),
        window=None,
    )


def _last(chunks: list[Tensor], count: int) -> Tensor:
    """The last `count` frames of a list of codes [K, n]."""
    codes = torch.cat(chunks, dim=1)
    return codes[:, codes.shape[1] - count :]
