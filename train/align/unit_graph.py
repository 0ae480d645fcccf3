"""The states that a recording passes through, from the units of its transcript.

    units     | h ə l ˈO , | w ˈɜ ɹ l d . |
    states    _ h ə l  O _  w  ɜ ɹ l d _          _ silence, which may be left out

A run of silent units is one state of silence. Stress marks are left out: stressed and unstressed vowels share a state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...tokenize.alignment.alignment import TimedUnits
from ...tokenize.text.units import is_silent

SILENCE = 0
STRESS_MARKS = "ˈˌ"


class SoundTable:
    """Numbers of the sounds of a corpus; 0 is silence."""

    def __init__(self, items: Iterable[Sequence[str]]):
        self.names: list[str] = ["", *sorted({sound_of(unit) for units in items for unit in units} - {""})]
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def number(self, unit: str) -> int:
        """The sound of a unit."""
        return self._numbers[sound_of(unit)]


def sound_of(unit: str) -> str:
    """A unit without its stress mark, "" if it is silent."""
    return "" if is_silent(unit) else unit.lstrip(STRESS_MARKS) or unit


@dataclass(frozen=True)
class UnitGraph:
    """States of one recording, passed from left to right; each lasts at least one frame, but silence can be skipped.

    The first and the last state are silence, and no two states of silence follow each other.
    """

    sounds: np.ndarray
    """[S] number of the sound of each state."""
    units: np.ndarray
    """[S] the unit that gets the frames of the state."""

    @property
    def fewest_frames(self) -> int:
        """Frames that the shortest path takes."""
        return int((self.sounds != SILENCE).sum())


def unit_graph(units: Sequence[str], table: SoundTable) -> UnitGraph:
    """The graph of units that begin and end with a silent one.

    Silence belongs to the first of its units, the punctuation mark, and at the end to the last, the word boundary.
    """
    sounds, owners = [], []
    for number, unit in enumerate(units):
        sound = table.number(unit)
        if sound != SILENCE or not sounds or sounds[-1] != SILENCE:
            sounds.append(sound)
            owners.append(number)
    owners[-1] = len(units) - 1
    return UnitGraph(np.array(sounds), np.array(owners))


def unit_times(path: np.ndarray, graph: UnitGraph, units: Sequence[str], seconds: float, rate: float) -> TimedUnits:
    """The times of units on a path.

    Args:
        path: [T] state of each frame. seconds: length of the recording. rate: frames per second.
    """
    frames = np.bincount(graph.units[path], minlength=len(units))
    ends = np.minimum(np.cumsum(frames) / rate, seconds)
    ends[-1] = seconds
    return TimedUnits(tuple(units), (0.0, *ends.tolist()))
