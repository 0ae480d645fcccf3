"""What queries see, where a mask would be large and kernels of their own know better.

An attention backend is told what queries see in one of three ways: by a dense mask (masks.py), by `PackedSequences` or
by `CacheLength`. Both of these can be written out as a dense mask, which is what they mean.
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
    """Rows laid end to end as a single one; what stands in a row sees keys of that row alone.

    Of lengths [2, 3], causal; rows see columns:

            a0 a1 b0 b1 b2
        a0   x
        a1   x  x
        b0         x
        b1         x  x
        b2         x  x  x

    Args:
        lengths: positions of each row, at least 1.
        device: of the queries.
        keys: where the keys are those of another sequence (cross-attention): how many each row has, at least 1; None:
            they are the row's own positions, each seen from there on.
        prefixes: positions at the beginning of each row that a window leaves in sight; None: none.
        window: positions that one sees, itself included, besides the prefix; None: all before it. Not with `keys`.
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
        """None also where no row is long enough to notice."""
        self._made: dict[Any, Any] = {}

    @cached_property
    def query_starts(self) -> Tensor:
        """[rows + 1] int32: where each row begins, and the end."""
        return self._starts(self.lengths)

    @cached_property
    def key_starts(self) -> Tensor:
        """[rows + 1] int32, of the keys."""
        return self.query_starts if self.causal else self._starts(self.key_lengths)

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """For each row a mask [1, 1, n, m]; None: all its keys are seen, or from the position on where `causal`."""
        masks: list[Tensor | None] = [None] * len(self.lengths)
        if self.window is not None:
            for row, (n, prefix) in enumerate(zip(self.lengths, self.prefixes, strict=True)):
                if n - prefix > self.window:
                    places = torch.arange(n, device=self.device)
                    masks[row] = causal_mask(places, places, prefix, None, self.window)
        return masks

    def dense(self) -> Tensor:
        """bool [1, 1, N, M]."""
        pieces = [
            torch.ones(n, m, dtype=torch.bool, device=self.device).tril_(0 if self.causal else m)
            if mask is None
            else mask[0, 0]
            for n, m, mask in zip(self.lengths, self.key_lengths, self.masks, strict=True)
        ]
        return torch.block_diag(*pieces)[None, None]

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What a backend makes of these rows, made for the first layer and kept for the others."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _starts(self, lengths: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)


class CacheLength:
    """n queries stand last among the first `count` of the keys; each sees all keys up to its own place.

    Of 5 keys with count 4, for 2 queries; rows see columns:    x x x . .
                                                                x x x x .

    Args:
        count: a number, or int32 [] on the keys' device (nothing then depends on it but the result).
    """

    def __init__(self, count: int | Tensor):
        self.count = count

    def dense(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """bool [1, 1, queries, keys]."""
        last = self.count - queries + torch.arange(queries, device=device)
        return (torch.arange(keys, device=device) <= last[:, None])[None, None]


AttentionMask = Tensor | PackedSequences | CacheLength | None
"""A bool mask, True where a key is seen, or what stands for one; None: all keys, or as the flag `causal` says."""


def as_mask(sight: AttentionMask, queries: Tensor, keys: Tensor) -> Tensor | None:
    """A dense mask of what queries [B, H, S, E] see of keys [B, G, M, E]."""
    if isinstance(sight, PackedSequences):
        return sight.dense()
    if isinstance(sight, CacheLength):
        return sight.dense(queries.shape[2], keys.shape[2], keys.device)
    return sight
