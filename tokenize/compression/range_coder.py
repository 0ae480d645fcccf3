"""Range coding of symbols with integer probabilities. This is the only file that imports the package constriction.

The probability of a value is an integer out of 2^24, at least 1. constriction receives numbers that sum to exactly
2^24 - V and adds 1 to each of the V, so it rounds nothing, and a decoder with the same integers reads the same symbols
on any machine.
Source: range coding (Martin, 1979); the package: arXiv:2201.01741.
"""

from __future__ import annotations

from typing import Any

import numpy as np

PRECISION = 24
MAX_SYMBOLS = 1 << 12
"""Maximum number of values of a symbol; with weights up to 2^20, every product stays below 2^63."""
MAX_WEIGHT = 1 << 20


def frequencies(weights: np.ndarray) -> np.ndarray:
    """Integers proportional to weights [N, V] int64 (0 .. MAX_WEIGHT, not all 0), with rows summing to 2^24 - V.

    Uses integer arithmetic only; the remainder is added to the first of the largest weights.
    """
    free = (1 << PRECISION) - weights.shape[1]
    shares = weights * free // weights.sum(axis=1, keepdims=True)
    shares[np.arange(len(shares)), weights.argmax(axis=1)] += free - shares.sum(axis=1)
    return shares


def cost_in_bits(symbols: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Bits of each symbol [N] under `frequencies` [N, V]: the coder's output without the stream termination."""
    chosen = shares[np.arange(len(symbols)), symbols] + 1
    return PRECISION - np.log2(chosen)


class SymbolWriter:
    """Encodes symbols to bytes. Raises ImportError without constriction (extra `compress`)."""

    def __init__(self):
        self.package = _package()
        self.encoder = self.package.stream.queue.RangeEncoder()

    def put(self, symbol: int, shares: np.ndarray) -> None:
        """Encode a symbol whose values have `frequencies` [V]; V = 1 costs nothing."""
        if len(shares) > 1:
            self.encoder.encode(int(symbol), _model(self.package, shares))

    def finish(self) -> bytes:
        """The encoded bytes of all symbols so far."""
        data = self.encoder.get_compressed().astype("<u4").tobytes()
        while len(data) % 4 != 1 and data.endswith(b"\0"):  # at most 3: the reader pads the last word
            data = data[:-1]
        return data


class SymbolReader:
    """Decodes the bytes of a SymbolWriter to symbols; changed bytes give other symbols or ValueError."""

    def __init__(self, data: bytes):
        self.package = _package()
        words = np.frombuffer(data + bytes(-len(data) % 4), dtype="<u4").astype(np.uint32)
        self.decoder = self.package.stream.queue.RangeDecoder(words)

    def take(self, shares: np.ndarray) -> int:
        """Decode the next symbol, given the `frequencies` [V] it was encoded with."""
        if len(shares) == 1:
            return 0
        try:
            return int(self.decoder.decode(_model(self.package, shares)))
        except AssertionError as error:  # the package's error for invalid bytes
            raise ValueError(f"bytes that were not written by the encoder ({error})") from None


def _package() -> Any:
    import constriction

    return constriction


def _model(package: Any, shares: np.ndarray) -> Any:
    return package.stream.model.Categorical(shares.astype(np.float64), perfect=False)
