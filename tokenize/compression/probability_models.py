"""Probability models for compressing codes; each gives integer weights for the next symbol.

uniform   equal weights: fixed-length codes, without prior knowledge
unigram   the frequency of each value in the file; the table is stored in the file
network   a CoderNet, conditioned on previous frames; the file stores its fingerprint
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .context import SymbolTable
from .integer_network import CoderNet
from .range_coder import MAX_WEIGHT


class UniformModel:
    """Equal weights for all values."""

    kind = "uniform"

    def __init__(self, table: SymbolTable):
        self.rows = [np.ones((1, size), dtype=np.int64) for size in table.sizes]
        self.offsets: Sequence[tuple[int, int]] = ((0, -1),)

    def start(self, near: np.ndarray, place: np.ndarray) -> None:
        """Set the context of N frames: symbols [N, n, J] of the context frames, and the positions [N]."""
        self.count = len(place)

    def weights(self, current: np.ndarray) -> np.ndarray:
        """Weights of the next symbol, given the frames' symbols so far [N, j]: [N, V_j] int64, at most MAX_WEIGHT."""
        return np.broadcast_to(self.rows[current.shape[1]], (self.count, self.rows[current.shape[1]].shape[1]))


class UnigramModel(UniformModel):
    """Weights from the frequency of each value in the file."""

    kind = "unigram"

    def __init__(self, table: SymbolTable, stored: bytes):
        super().__init__(table)
        if len(stored) != sum(table.sizes):
            raise ValueError(f"a table of {sum(table.sizes)} values is wanted, {len(stored)} are stored")
        whole = np.frombuffer(stored, dtype=np.uint8).astype(np.int64)
        ends = np.cumsum(table.sizes)[:-1]
        self.rows = [_from_byte(part)[None] for part in np.split(whole, ends)]

    @staticmethod
    def measure(symbols: np.ndarray, table: SymbolTable) -> bytes:
        """The table to store for symbols [F, J]: one byte per value, 8 * log2 of its frequency relative to the most
        common value, offset to be positive."""
        parts = [
            _to_byte(np.bincount(column, minlength=size)) for column, size in zip(symbols.T, table.sizes, strict=True)
        ]
        return b"".join(part.tobytes() for part in parts)


class NetworkModel:
    """Weights from a CoderNet."""

    kind = "network"

    def __init__(self, net: CoderNet):
        self.net = net.freeze()
        self.offsets: Sequence[tuple[int, int]] = net.config.context

    @torch.no_grad()
    def start(self, near: np.ndarray, place: np.ndarray) -> None:
        """See UniformModel.start."""
        self.hidden = self.net(torch.from_numpy(near), torch.from_numpy(place))

    @torch.no_grad()
    def weights(self, current: np.ndarray) -> np.ndarray:
        """See UniformModel.weights."""
        return self.net.weights(self.hidden, torch.from_numpy(current)).astype(np.int64)


def _to_byte(counts: np.ndarray) -> np.ndarray:
    """Counts [V] -> bytes [V]: 0 for 0, else a 3-bit mantissa and an exponent; decoding is integer arithmetic."""
    scaled = counts * float(MAX_WEIGHT >> 1) / max(1, counts.max())
    found = np.round(8 * np.log2(np.maximum(scaled, 1.0))).astype(np.int64)
    return np.where(counts > 0, np.clip(found, 1, 255), 0).astype(np.uint8)


def _from_byte(stored: np.ndarray) -> np.ndarray:
    """Bytes [V] -> weights [V] int64, about 2^(byte / 8); 1 for 0."""
    mantissa = np.array([8, 9, 10, 10, 11, 12, 13, 15])  # 8 * 2^(i / 8)
    return np.minimum(np.maximum(1, (mantissa[stored % 8] << (stored // 8).clip(max=20)) >> 3), MAX_WEIGHT)


Model = UniformModel | UnigramModel | NetworkModel
