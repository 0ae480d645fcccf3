"""Symbols <-> bytes, in chunks that stand alone: a chunk's context reaches neither into another nor into another item.

    items      aaaaaaaaa bbbbbb ccccccccccccccccccccc          as many frames a chunk as said, whatever the items
    chunks     |-------|-------|-------|-------|-----|         first frame of an item or a chunk: nothing before it

All chunks are read in step, so a model runs once for a frame of each.
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
    """Where the frames of all items stand."""

    place: np.ndarray
    """[F] of each frame in its item."""
    first: np.ndarray
    """[F] the earliest frame it may see."""
    chunks: list[tuple[int, int]]
    """Beginning and end of each."""

    @staticmethod
    def of(lengths: Sequence[int], chunk_frames: int) -> Layout:
        """For items of these numbers of frames."""
        place = places(lengths)
        frame = np.arange(len(place))
        first = np.maximum(frame - place, frame - frame % chunk_frames)
        starts = range(0, len(place), chunk_frames)
        return Layout(place, first, [(start, min(start + chunk_frames, len(place))) for start in starts])


def write_chunks(symbols: np.ndarray, layout: Layout, spec: TokenSpec, model: Model) -> tuple[list[bytes], np.ndarray]:
    """Symbols [F, J] -> the bytes of each chunk, and the bits that each symbol cost [F, J]."""
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
    """The bits that each symbol [F, J] would cost; no package is needed."""
    costs = np.zeros(symbols.shape)
    for _, rows, shares in _all_shares(symbols, layout, spec, model):
        for j, own in enumerate(shares):
            costs[rows, j] = cost_in_bits(symbols[rows, j], own)
    return costs


def _all_shares(
    symbols: np.ndarray, layout: Layout, spec: TokenSpec, model: Model
) -> Iterator[tuple[int, slice, list[np.ndarray]]]:
    """Some frames at a time: number of the chunk, which frames, and `frequencies` of each symbol [n, V_j]."""
    sizes = symbol_table(spec.cardinalities).sizes
    near = neighbours(layout.place, layout.first, spec.geometry, model.offsets)
    for number, (start, end) in enumerate(layout.chunks):
        for begin in range(start, end, FRAMES_AT_ONCE):
            rows = slice(begin, min(begin + FRAMES_AT_ONCE, end))
            model.start(context_symbols(symbols, near[rows], sizes).numpy(), layout.place[rows])
            yield number, rows, [frequencies(model.weights(symbols[rows, :j])) for j in range(len(sizes))]


def read_chunks(chunks: Sequence[bytes], layout: Layout, spec: TokenSpec, model: Model) -> tuple[np.ndarray, set[int]]:
    """The bytes of each chunk -> symbols [F, J], and the numbers of chunks that no encoder wrote."""
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
