"""Batch sampler: assigns items to batches as a pure function of seed and step, the same in every process.

Training has no data loader with worker processes: items are read from memory or memory-mapped shards, so a step asks
the sampler for item numbers and the dataset for their batch (`CodesDataset.batch`, `MediaInMemory.batch`).

Items form an endless stream of epochs; each epoch is a permutation of all items that depends only on (seed, epoch). The
stream is split into pools of `pool_batches` batches; each pool is sorted by length and split into batches of similar
length, and the batches are shuffled:

    stream   | epoch 0: 4 1 3 0 2 | epoch 1: 2 0 4 3 1 | ...
    pools    [4 1 3 0] [2 2 0 4] [3 1 . .] ...             (batch 2, pool_batches 2)
    batches  [0 3] [1 4], [2 4] [0 2], ...                 each pool sorted by length, then its batches shuffled

A batch is split into micro-batches of similar length, and rank r takes micro-batches r, r + world, r + 2 world, ...:
the same micro-batches for every world size, so the loss does not depend on it. A run resumed with more processes than
micro-batches splits each into parts (lm/ops/row_rng.py makes their noise match that of the whole).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ...configs.schema import ConfigError

Batch = TypeVar("Batch", np.ndarray, "list[np.ndarray]")
"""Item numbers, or those of each packed row (train/lm/sequence_packing.py)."""


class Sampler:
    """Sampler of batches of item numbers.

    Args:
        lengths: [n] frames of each item.
        batch: items of a global batch.
        seed: seed of the item order.
        pool_batches: batches that are sorted by length together; 1 sorts only within a batch.
    """

    def __init__(self, lengths: np.ndarray, batch: int, seed: int, pool_batches: int = 16):
        if len(lengths) == 0:
            raise ValueError("there are no items to train on")
        self.lengths = np.asarray(lengths)
        self.batch_size = batch
        self.seed = seed
        self.pool_batches = pool_batches
        self._orders: dict[int, np.ndarray] = {}
        self._pool: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> np.ndarray:
        """Item numbers [batch] of a step, sorted by length."""
        number, inside = divmod(step, self.pool_batches)
        if self._pool is None or self._pool[0] != number:
            self._pool = (number, self._make_pool(number))
        return self._pool[1][inside]

    def epoch(self, step: int) -> float:
        """Number of passes over the items before this step."""
        return step * self.batch_size / len(self.lengths)

    def _make_pool(self, number: int) -> np.ndarray:
        size = self.pool_batches * self.batch_size
        items = self.stream(number * size, size)
        by_length = items[np.argsort(self.lengths[items], kind="stable")].reshape(self.pool_batches, self.batch_size)
        return by_length[shuffled(self.pool_batches, self.seed, number, salt=1)]

    def stream(self, start: int, count: int) -> np.ndarray:
        """Items start .. start + count - 1 of the endless stream of epochs."""
        num_items = len(self.lengths)
        epochs, places = np.divmod(np.arange(start, start + count), num_items)
        items = np.empty(count, dtype=np.int64)
        orders = {}  # only the epochs in this span: the next span starts in the last of them
        for epoch in np.unique(epochs).tolist():
            orders[epoch] = (
                self._orders[epoch] if epoch in self._orders else shuffled(num_items, self.seed, epoch, salt=0)
            )
            here = epochs == epoch
            items[here] = orders[epoch][places[here]]
        self._orders = orders
        return items


@dataclass(frozen=True)
class Cut:
    """How a global batch is split among the processes."""

    micro: int
    """Items of a micro-batch, whose random numbers are drawn together."""
    parts: int
    """Parts per micro-batch; a process takes one at a time. 1 unless there are too few micro-batches."""

    @property
    def size(self) -> int:
        """Items of a part."""
        return self.micro // self.parts


@dataclass(frozen=True)
class Part(Generic[Batch]):
    """Rows of one forward pass of a process."""

    number: int
    """Index of the micro-batch within the global batch."""
    items: Batch
    """Item numbers [micro] of the whole micro-batch, or its packed rows."""
    rows: slice
    """Rows of the micro-batch that belong to the part."""


def parts_of(items: Batch, cut: Cut, rank: int, world: int) -> list[Part[Batch]]:
    """The parts of one rank, in order."""
    found = []
    for place, _ in micro_batches(items, cut.size, rank, world):
        number, part = divmod(place, cut.parts)
        whole = items[number * cut.micro : (number + 1) * cut.micro]
        found.append(Part(number, whole, slice(part * cut.size, (part + 1) * cut.size)))
    return found


def micro_batches(items: Batch, micro: int, rank: int, world: int) -> list[tuple[int, Batch]]:
    """The micro-batches of one rank: (index within the global batch, item numbers [micro] or packed rows)."""
    return [
        (number, items[number * micro : (number + 1) * micro]) for number in range(rank, len(items) // micro, world)
    ]


def cut_batch(batch: int, micro: int, world: int) -> Cut:
    """Keep micro-batches of `micro` items with any number of processes; ConfigError if they cannot divide the batch.

    For resumed runs; new runs use `check_batch`.
    """
    for parts in range(1, micro + 1):
        if micro % parts == 0 and (batch // micro * parts) % world == 0:
            return Cut(micro, parts)
    raise ConfigError(
        f"train.batch: {batch} items, in micro-batches of {micro} as this run was started, cannot be divided among "
        f"{world} processes; resume with another number of processes"
    )


def check_batch(batch: int, micro_batch: int | None, world: int) -> int:
    """Micro-batch size to use; ConfigError if the global batch cannot be divided evenly."""
    micro = micro_batch if micro_batch is not None else max(1, batch // world)
    if batch % (micro * world):
        raise ConfigError(
            f"train.batch: {batch} items cannot be divided among {world} processes in micro-batches "
            f"of {micro}; make train.batch a multiple of {micro * world}"
        )
    return micro


def mix(*words: int) -> int:
    """A 63-bit number that depends on all words (splitmix64 over them in turn); source of all training seeds."""
    state = 0
    for word in words:
        state = (state + (word & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


_MASK = (1 << 64) - 1


def shuffled(count: int, seed: int, number: int, salt: int) -> np.ndarray:
    """A permutation of 0 .. count - 1: sort by hash. Unlike a library's shuffle, it is the same in every version."""
    hashes = np.arange(count, dtype=np.uint64) + np.uint64(mix(seed, number, salt))
    hashes *= np.uint64(0x9E3779B97F4A7C15)  # wraps around on purpose
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(hashes ^ (hashes >> np.uint64(31)), kind="stable")
