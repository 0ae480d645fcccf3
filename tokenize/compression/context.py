"""Context of the entropy coder: symbols of earlier nearby frames of the same item and the same chunk.

Large codes are split into several symbols of at most 4096 values, the high one first:

    code of 2^18 values   ->   64 x 4096:   code // 4096,  code % 4096
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..spec import AudioGeometry, ImageGeometry
from .range_coder import MAX_SYMBOLS


@dataclass(frozen=True)
class SymbolTable:
    """Mapping of the K codes of a frame to J symbols."""

    sizes: tuple[int, ...]
    """Number of values of each symbol [J]."""
    of_codebook: tuple[int, ...]
    """Codebook of each symbol [J]."""

    def split(self, codes: np.ndarray) -> np.ndarray:
        """Codes [K, T] int64 -> symbols [T, J]."""
        symbols, rest = [], codes
        for number in reversed(range(len(self.sizes))):
            book = self.of_codebook[number]
            symbols.append(rest[book] % self.sizes[number])
            rest = rest.copy()
            rest[book] //= self.sizes[number]
        return np.stack(symbols[::-1], axis=1)

    def join(self, symbols: np.ndarray) -> np.ndarray:
        """Symbols [T, J] -> codes [K, T]."""
        codes = np.zeros((max(self.of_codebook) + 1, len(symbols)), dtype=np.int64)
        for size, book, column in zip(self.sizes, self.of_codebook, symbols.T, strict=True):
            codes[book] = codes[book] * size + column
        return codes


def symbol_table(cardinalities: Sequence[int]) -> SymbolTable:
    """Symbol table for codebooks of the given sizes."""
    sizes, books = [], []
    for book, size in enumerate(cardinalities):
        digits = []
        while size > MAX_SYMBOLS:
            digits.append(MAX_SYMBOLS)
            size = -(-size // MAX_SYMBOLS)
        digits.append(size)
        sizes += digits[::-1]
        books += [book] * len(digits)
    return SymbolTable(tuple(sizes), tuple(books))


def places(lengths: Sequence[int]) -> np.ndarray:
    """Position of every frame in its item [sum of lengths], for concatenated items."""
    return np.concatenate([np.arange(length) for length in lengths]) if len(lengths) else np.zeros(0, dtype=np.int64)


def neighbours(
    place: np.ndarray,
    first: np.ndarray,
    geometry: AudioGeometry | ImageGeometry,
    offsets: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Indices of the frames in each frame's context.

    Args:
        place: [F], position of each frame in its item. first: [F], earliest allowed context frame of each frame.
        geometry: audio counts as one unbounded row.
        offsets: n pairs (rows, columns) from a frame to a context frame.
    Returns:
        frame indices [F, n], -1 where there is none.
    """
    frame = np.arange(len(place))
    columns = geometry.columns if isinstance(geometry, ImageGeometry) else None
    found = []
    for down, right in offsets:
        if columns is None:
            distance = np.full(len(place), right)
            inside = np.full(len(place), down == 0)
        else:
            column = place % columns + right
            distance = down * columns + right
            inside = (column >= 0) & (column < columns)
        other = frame + distance
        found.append(np.where(inside & (other >= first) & (place + distance >= 0), other, -1))
    return np.stack(found, axis=1)
