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

from ..lm.kinds import AnyLM
from ..lm.masked import MaskedLM
from ..lm.model import TokenLM
from .loop import Generated, Length
from .noise import derived_seed
from .own_lm import Wrapped
from .request import Request
from .stages import make_codes, start_loop


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

    Models that make all frames together give them at once.
    """
    if row.window is None or row.length.max_frames <= row.window:
        return (yield from _make(lm, row))
    return (yield from _in_windows(lm, row, row.window))


def _make(lm: AnyLM, row: Request) -> Generator[Tensor, None, bool]:
    if isinstance(lm, MaskedLM) or not isinstance(lm, TokenLM | Wrapped):
        made: Generated = make_codes(lm, row, exact=True)
        yield made.codes[0, :, : int(made.lengths[0])]
        return bool(made.ended[0])
    loop = start_loop(lm, row)
    yield from loop.frames()
    return bool(loop.board.ended[0])


def _in_windows(lm: AnyLM, row: Request, window: int) -> Generator[Tensor, None, bool]:
    overlap, length = window - row.stride, row.length
    context, before, number = None if row.prompt is None else row.prompt[0], 0, 0
    skip = 0  # frames of the context that have been handed on already
    if context is not None and context.shape[1] >= window:
        before = context.shape[1] - overlap
        yield context[:, :before]
        context = context[:, before:]
    while True:
        size = min(window, length.max_frames - before)
        own = replace(
            row,
            prompt=context[None] if context is not None and context.shape[1] else None,
            seeds=[derived_seed(row.seeds[0], number)],
            length=Length(size, min(max(length.min_frames - before, 0), size), length.fixed),
            window=None,
        )
        count, kept, making = 0, [], Making(_make(lm, own))
        for codes in making:
            fresh = beyond(codes, count, skip)
            count += codes.shape[1]
            kept.append(codes)
            if fresh.shape[1]:
                yield fresh
        if count < size or before + size >= length.max_frames:
            return making.ended
        context = _last(kept, overlap)
        skip, number, before = overlap, number + 1, before + size - overlap


def _last(pieces: list[Tensor], count: int) -> Tensor:
    """The last `count` frames of pieces [K, n]."""
    codes = torch.cat(pieces, dim=1)
    return codes[:, codes.shape[1] - count :]
