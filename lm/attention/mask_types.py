"""Compact mask types for kernels that do not need a dense mask.

An attention backend receives the mask in one of three forms: a dense mask (masks.py), `PackedSequences` or
`CacheLength`. The latter two can be converted to the equivalent dense mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from .masks import causal_mask

Made = TypeVar("Made")


class PackedSequences:
    """Sequences packed into one row; each position attends only to keys of the same sequence.

    Of lengths [2, 3], causal; rows are queries, columns are keys:

            a0 a1 b0 b1 b2
        a0   x
        a1   x  x
        b0         x
        b1         x  x
        b2         x  x  x

    Args:
        lengths: positions of each sequence, at least 1.
        device: of the queries.
        keys: for cross-attention, the number of keys of each sequence, at least 1; None: causal self-attention.
        prefixes: leading positions of each sequence that remain visible outside the window; None: none.
        window: attention window in positions, the current one included, besides the prefix; None: unlimited. Not with
            `keys`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        device: torch.device | str,
        keys: Sequence[int] | None = None,
        prefixes: Sequence[int] | None = None,
        window: int | None = None,
    ):
        self.lengths = list(lengths)
        self.key_lengths = self.lengths if keys is None else list(keys)
        self.causal = keys is None
        self.device = torch.device(device)
        self.prefixes = [0] * len(self.lengths) if prefixes is None else list(prefixes)
        steps = max(length - prefix for length, prefix in zip(self.lengths, self.prefixes, strict=True))
        self.window = window if window is not None and steps > window else None
        """None also if every sequence fits in the window."""
        self._made: dict[Any, Any] = {}

    @cached_property
    def query_starts(self) -> Tensor:
        """[rows + 1] int32: the start of each sequence, and the end of the last."""
        return self._starts(self.lengths)

    @cached_property
    def key_starts(self) -> Tensor:
        """[rows + 1] int32, for the keys."""
        return self.query_starts if self.causal else self._starts(self.key_lengths)

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """For each sequence a mask [1, 1, n, m]; None: all its keys, or the preceding ones if `causal`."""
        masks: list[Tensor | None] = [None] * len(self.lengths)
        if self.window is not None:
            for row, (n, prefix) in enumerate(zip(self.lengths, self.prefixes, strict=True)):
                if n - prefix > self.window:
                    places = torch.arange(n, device=self.device)
                    masks[row] = causal_mask(places, places, prefix, None, self.window)
        return masks

    def dense(self) -> Tensor:
        """bool [1, 1, N, M]."""
        blocks = [
            torch.ones(n, m, dtype=torch.bool, device=self.device).tril_(0 if self.causal else m)
            if mask is None
            else mask[0, 0]
            for n, m, mask in zip(self.lengths, self.key_lengths, self.masks, strict=True)
        ]
        return torch.block_diag(*blocks)[None, None]

    def cached(self, name: str, make: Callable[[], Made]) -> Made:
        """Cache an object that a backend derives from the sequences: built in one layer, reused by the others."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _starts(self, lengths: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)


class CacheLength:
    """n queries at the end of the first `count` keys; each attends to all keys up to its own position.

    For 5 keys with count 4 and 2 queries; rows are queries:    x x x . .
                                                                x x x x .

    Args:
        count: a number, or int32 [] on the keys' device (then only the result depends on it).
    """

    def __init__(self, count: int | Tensor):
        self.count = count

    def dense(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """bool [1, 1, queries, keys]."""
        last = self.count - queries + torch.arange(queries, device=device)
        return (torch.arange(keys, device=device) <= last[:, None])[None, None]


AttentionMask = Tensor | PackedSequences | CacheLength | None
"""A bool mask, True where a query attends to a key, or a compact type; None: all keys, or as `causal` specifies."""


def as_mask(mask: AttentionMask, queries: Tensor, keys: Tensor) -> Tensor | None:
    """The dense mask for queries [B, H, S, E] and keys [B, G, M, E]."""
    if isinstance(mask, PackedSequences):
        return mask.dense()
    if isinstance(mask, CacheLength):
        return mask.dense(queries.shape[2], keys.shape[2], keys.device)
    return mask
