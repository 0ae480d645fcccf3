"""Coding of symbols to bytes in independent chunks: context never crosses the border of a chunk or an item.

    items      aaaaaaaaa bbbbbb ccccccccccccccccccccc          chunks have a fixed number of frames, whatever the items
    chunks     |-------|-------|-------|-------|-----|         the first frame of an item or chunk has no context

All chunks are decoded in lockstep, so the model processes one frame of every chunk at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..spec import TokenSpec
from .context import neighbours, places, symbol_table
from .integer_network import context_symbols
from .probability_models import Model
from .range_coder import SymbolReader, SymbolWriter, cost_in_bits, frequencies

FRAMES_AT_ONCE = 512


@dataclass(frozen=True)
class Layout:
    """Positions of the frames of all items."""

    place: np.ndarray
    """[F] position of each frame in its item."""
    first: np.ndarray
    """[F] the earliest frame in each frame's context."""
    chunks: list[tuple[int, int]]
    """Start and end frame of each chunk."""

    @staticmethod
    def of(lengths: Sequence[int], chunk_frames: int) -> Layout:
        """Layout of items with the given numbers of frames."""
        place = places(lengths)
        frame = np.arange(len(place))
        first = np.maximum(frame - place, frame - frame % chunk_frames)
        starts = range(0, len(place), chunk_frames)
        return Layout(place, first, [(start, min(start + chunk_frames, len(place))) for start in starts])


def write_chunks(symbols: np.ndarray, layout: Layout, spec: TokenSpec, model: Model) -> tuple[list[bytes], np.ndarray]:
    """Encode symbols [F, J] -> the bytes of each chunk, and the cost of each symbol in bits [F, J]."""
    costs = np.zeros(symbols.shape)
    writers = [SymbolWriter() for _ in layout.chunks]
    for number, rows, shares in _all_shares(symbols, layout, spec, model):
        for j, own in enumerate(shares):
            costs[rows, j] = cost_in_bits(symbols[rows, j], own)
        for row, frame in enumerate(symbols[rows]):
            for symbol, own in zip(frame, shares, strict=True):
                writers[number].put(symbol, own[row])
    return [writer.finish() for writer in writers], costs


def symbol_costs(symbols: np.ndarray, layout: Layout, spec: TokenSpec, model: Model) -> np.ndarray:
    """Cost in bits of each symbol [F, J]; does not need the package constriction."""
    costs = np.zeros(symbols.shape)
    for _, rows, shares in _all_shares(symbols, layout, spec, model):
        for j, own in enumerate(shares):
            costs[rows, j] = cost_in_bits(symbols[rows, j], own)
    return costs


def _all_shares(
    symbols: np.ndarray, layout: Layout, spec: TokenSpec, model: Model
) -> Iterator[tuple[int, slice, list[np.ndarray]]]:
    """Batches of frames: chunk index, slice of frames, and `frequencies` of each symbol [n, V_j]."""
    sizes = symbol_table(spec.cardinalities).sizes
    near = neighbours(layout.place, layout.first, spec.geometry, model.offsets)
    for number, (start, end) in enumerate(layout.chunks):
        for begin in range(start, end, FRAMES_AT_ONCE):
            rows = slice(begin, min(begin + FRAMES_AT_ONCE, end))
            model.start(context_symbols(symbols, near[rows], sizes).numpy(), layout.place[rows])
            yield number, rows, [frequencies(model.weights(symbols[rows, :j])) for j in range(len(sizes))]


def read_chunks(chunks: Sequence[bytes], layout: Layout, spec: TokenSpec, model: Model) -> tuple[np.ndarray, set[int]]:
    """Decode the bytes of each chunk -> symbols [F, J], and the indices of chunks with invalid bytes."""
    sizes = symbol_table(spec.cardinalities).sizes
    near = neighbours(layout.place, layout.first, spec.geometry, model.offsets)
    symbols = np.zeros((len(layout.place), len(sizes)), dtype=np.int64)
    readers = [SymbolReader(data) for data in chunks]
    starts, ends = np.array(layout.chunks).reshape(-1, 2).T
    bad: set[int] = set()
    for step in range(int((ends - starts).max(initial=0))):
        running = np.flatnonzero(starts + step < ends)
        rows = starts[running] + step
        model.start(context_symbols(symbols, near[rows], sizes).numpy(), layout.place[rows])
        for j in range(len(sizes)):
            shares = frequencies(model.weights(symbols[rows, :j]))
            for number, row, own in zip(running.tolist(), rows, shares, strict=True):
                if number not in bad:
                    try:
                        symbols[row, j] = readers[number].take(own)
                    except ValueError:
                        bad.add(number)
    return symbols, bad
