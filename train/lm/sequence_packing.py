"""Packed sequences: items of different lengths share a row, so that a batch has no padding
(lm/models/packed_sequences.py).

    padded    a a a a a        packed    a a a a a d        best fit: longest item first, each into the row where
              b b b . .                  b b b c c .        it leaves the least space
              c c . . .
              d . . . .

Which lengths share a row depends only on the lengths, so every epoch has the same number of rows; the items of these
lengths and the order of the rows are drawn from (seed, epoch). So a batch is a pure function of (seed, step), and an
epoch contains every item once.
Source: best-fit packing, arXiv:2404.10830, without splitting long items.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from ...configs.schema import Config, ConfigError
from ..common.batch_sampler import shuffled


class PaddedConfig(Config):
    """One item per row, padded to the longest of a micro-batch."""

    kind: Literal["padded"] = "padded"


class BestFitConfig(Config):
    """Several items per row, packed without padding."""

    kind: Literal["best_fit"] = "best_fit"
    steps: PositiveInt
    """Row capacity in steps of the codebook pattern; the conditions' prefix does not count."""


PackingConfig = Annotated[PaddedConfig | BestFitConfig, Field(discriminator="kind")]


class PackedSampler:
    """Sampler of batches of packed rows.

    Args:
        steps: [n] of each item.
        batch: rows of a global batch.
        seed: seed of the item order.
        config: row capacity.
    Raises:
        ConfigError: an item does not fit into a row.
    """

    def __init__(self, steps: Sequence[int] | np.ndarray, batch: int, seed: int, config: BestFitConfig):
        self.steps = np.asarray(steps)
        if len(self.steps) == 0:
            raise ValueError("there are no items to train on")
        if self.steps.max() > config.steps:
            raise ConfigError(
                f"data.packing.steps: the longest item takes {self.steps.max()} steps, more than the {config.steps} of "
                "a row; raise it, or exclude long items with data.max_frames"
            )
        self.batch_size = batch
        self.seed = seed
        # Items come in best-fit order, longest first: row_of_place gives the row of the n-th.
        row_of_place = best_fit(np.sort(self.steps)[::-1].tolist(), config.steps)
        self._places = np.argsort(row_of_place, kind="stable")
        self._ends = np.bincount(row_of_place).cumsum()
        self._epochs: dict[int, list[np.ndarray]] = {}

    @property
    def num_rows(self) -> int:
        """Rows per epoch."""
        return len(self._ends)

    def batch(self, step: int) -> list[np.ndarray]:
        """The item numbers of each row of a step."""
        first = step * self.batch_size
        epochs, places = np.divmod(np.arange(first, first + self.batch_size), self.num_rows)
        self._epochs = {
            epoch: self._epochs[epoch] if epoch in self._epochs else self.epoch_rows(epoch)
            for epoch in np.unique(epochs).tolist()
        }
        return [self._epochs[epoch][place] for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)]

    def epoch(self, step: int) -> float:
        """Number of passes over the items before this step."""
        return step * self.batch_size / self.num_rows

    def epoch_rows(self, epoch: int) -> list[np.ndarray]:
        """The item numbers of each row of an epoch, in order."""
        drawn = shuffled(len(self.steps), self.seed, epoch, salt=2)
        items = drawn[np.argsort(-self.steps[drawn], kind="stable")]  # longest first, random among equal lengths
        rows = np.split(items[self._places], self._ends[:-1])
        return [rows[row] for row in shuffled(len(rows), self.seed, epoch, salt=3)]


def best_fit(sizes: Sequence[int], capacity: int) -> list[int]:
    """The row of each item, assigned in order: the row where it leaves the least space (the last one filled, among
    equals), or a new one."""
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces: list[int] = []  # amounts of free space for which there is a row, sorted
    row_of, count = [], 0
    for size in sizes:
        place = bisect_left(spaces, size)
        if place < len(spaces):
            found = spaces[place]
            row = rows_with[found].pop()
            if not rows_with[found]:
                del spaces[place]
        else:
            found, row, count = capacity, count, count + 1
        left = found - size
        if not rows_with[left]:
            insort(spaces, left)
        rows_with[left].append(row)
        row_of.append(row)
    return row_of
