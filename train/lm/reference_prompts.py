"""Source of the code prompt of a training item (the condition `codes`).

    same_label   a segment of another item with the same label: another recording of the same voice
    crop         a segment of the item itself

The segment is a pure function of (seed, draw, item), where draw is the step in training and 0 in evaluation. So it
depends neither on the world size nor on where a run was stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from ...configs.schema import Config, ConfigError
from ..common.batch_sampler import mix


class SameLabelPromptConfig(Config):
    """A segment of another item with the same label. An item with a unique label gets no prompt."""

    kind: Literal["same_label"] = "same_label"
    min_frames: PositiveInt = 1
    """Shortest segment (a shorter item is used whole); the condition's max_frames is the longest."""


class CropPromptConfig(Config):
    """A segment of the item itself, for corpora without labels.

    It leaks: its content is also predicted, and a model learns to copy it where it can. Short segments of long items
    leak least (VALL-E's second stage does this with three seconds, arXiv:2301.02111).
    """

    kind: Literal["crop"] = "crop"
    min_frames: PositiveInt = 1
    """Shortest segment; the condition's max_frames is the longest."""
    max_share: float = Field(default=0.5, gt=0, le=1)
    """Longest segment as a fraction of the item, but at least one frame."""


PromptConfig = Annotated[SameLabelPromptConfig | CropPromptConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class PromptSource:
    """Prompt settings of a config."""

    config: PromptConfig
    max_frames: int
    """max_frames of the condition."""
    seed: int


@dataclass(frozen=True)
class Segment:
    """Frames start .. stop - 1 of an item."""

    item: int
    start: int
    stop: int


class Prompts:
    """Prompts for a set of items.

    Args:
        lengths: [n] frames of each item. labels: [n] long, -1 for none. where: names the items in errors.
    Raises:
        ConfigError: no two items have the same label.
    """

    def __init__(self, source: PromptSource, lengths: np.ndarray, labels: np.ndarray, where: str):
        self.source, self.lengths, self.labels = source, lengths, labels
        self._order = np.argsort(labels, kind="stable")  # groups items by label
        self._place = np.argsort(self._order, kind="stable")
        known, firsts, counts = np.unique(labels[self._order], return_index=True, return_counts=True)
        self._groups = {
            int(label): (int(first), int(count)) for label, first, count in zip(known, firsts, counts, strict=True)
        }
        if source.config.kind == "same_label" and not any(
            label >= 0 and count > 1 for label, (_, count) in self._groups.items()
        ):
            raise ConfigError(
                f"data.prompt same_label: no two items of {where} have the same label; add labels to the corpus, or "
                "use kind crop"
            )

    def choose(self, item: int, draw: int) -> Segment | None:
        """The prompt of an item (0 .. n - 1), or None."""
        config, words = self.source.config, (self.source.seed, 5, draw, item)
        other = self._other(item, mix(*words, 0)) if config.kind == "same_label" else item
        if other is None:
            return None
        longest = length = int(self.lengths[other])
        if config.kind == "crop":
            longest = max(1, int(length * config.max_share))
        longest = min(longest, self.source.max_frames)
        shortest = min(config.min_frames, longest)
        frames = shortest + mix(*words, 1) % (longest - shortest + 1)
        start = mix(*words, 2) % (length - frames + 1)
        return Segment(other, start, start + frames)

    def _other(self, item: int, number: int) -> int | None:
        """Another item with the same label."""
        label = int(self.labels[item])
        first, count = self._groups[label]
        if label < 0 or count < 2:
            return None
        own = int(self._place[item]) - first
        return int(self._order[first + (own + 1 + number % (count - 1)) % count])
