"""What generated speech says, and when: the units and words of a text with their times.

Generation from an aligned text knows the unit of every frame, so the times are exact; nothing is recognized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..text.units import UnitText


@dataclass(frozen=True)
class TimedWord:
    """A word as written, from `start` to `end` seconds."""

    word: str
    start: float
    end: float


@dataclass(frozen=True)
class SpokenText:
    """The units of a text with their frames, and its words with their times."""

    units: tuple[str, ...]
    frames: tuple[int, ...]
    """[units] frames of each unit, 0 for a skipped pause."""
    words: tuple[TimedWord, ...]


def spoken_text(reader: UnitText, text: str, unit_of_frame: Tensor, frame_rate: float) -> SpokenText:
    """The text of one sample with its times.

    Args:
        unit_of_frame: [T] long, index of the unit that each frame speaks. frame_rate: frames per second.
    """
    units = reader.units(text)
    frames = torch.bincount(unit_of_frame, minlength=len(units))[: len(units)]
    ends = [0, *frames.cumsum(0).tolist()]
    words = [
        TimedWord(word, ends[first] / frame_rate, ends[last] / frame_rate) for word, first, last in reader.words(text)
    ]
    return SpokenText(tuple(units), tuple(frames.tolist()), tuple(words))


def join_spoken(parts: Sequence[SpokenText], starts: Sequence[float]) -> SpokenText:
    """Texts spoken one after another; part i begins at starts[i] seconds."""
    return SpokenText(
        tuple(unit for part in parts for unit in part.units),
        tuple(count for part in parts for count in part.frames),
        tuple(
            TimedWord(one.word, start + one.start, start + one.end)
            for part, start in zip(parts, starts, strict=True)
            for one in part.words
        ),
    )


def join_units(rows: Sequence[Tensor | None]) -> Tensor | None:
    """The units [B, T] of the frames of several batches as one, padded with -1; None if they have none."""
    given = [units for units in rows if units is not None]
    if not given:
        return None
    longest = max(units.shape[1] for units in given)
    return torch.cat([F.pad(units, (0, longest - units.shape[1]), value=-1) for units in given])
