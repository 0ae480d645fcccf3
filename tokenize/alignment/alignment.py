"""The alignment of an item: the units of its transcript (phonemes or characters) with the time of each.

    files    TimedUnits   boundaries in seconds                  alignment_file.py
    shards   Alignment    frames of each unit, exact             this file

A unit is silent if it has neither a letter nor a digit: the word boundary | and punctuation marks. Every other unit
sounds, and has at least one frame.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..text.units import WORD_BOUNDARY, is_silent

MAX_UNITS = 200_000
"""Units of one item."""
MAX_UNIT_LENGTH = 32
"""Characters of one unit."""
MAX_SILENT_RUN = 2
"""Silent units between two sounding ones: a punctuation mark and a word boundary."""
SLACK_SECONDS = 0.001
"""Largest gap or overlap of two intervals of a file, which rounded numbers cause."""


@dataclass(frozen=True)
class TimedUnits:
    """Units with their times, contiguous and in order."""

    units: tuple[str, ...]
    boundaries: tuple[float, ...]
    """[units + 1] seconds, ascending; unit i lasts from boundaries[i] to boundaries[i + 1]."""


@dataclass(frozen=True)
class Alignment:
    """Units with their frames."""

    units: tuple[str, ...]
    frames: tuple[int, ...]
    """[units] frames of each unit: at least 1 if it sounds, at least 0 if it is silent."""

    @property
    def num_frames(self) -> int:
        """T, frames of the item."""
        return sum(self.frames)


def time_units(intervals: Sequence[tuple[float, float, str]]) -> TimedUnits:
    """Check intervals (start, end, unit) in seconds.

    An empty unit is a pause. Pauses that follow each other become one, and a leading and a trailing pause are added,
    without duration, where they are missing.

    Raises:
        ValueError: no interval or too many, no valid unit, a gap, an overlap, an interval that ends before it starts, a
            sounding unit without duration, or three silent units in a row.
    """
    if not 0 < len(intervals) <= MAX_UNITS:
        raise ValueError(f"{len(intervals)} intervals; an alignment has 1 to {MAX_UNITS}")
    units, ends = [WORD_BOUNDARY], [intervals[0][0]]
    start = ends[0]
    for number, (first, last, unit) in enumerate(intervals, start=1):
        unit = unit or WORD_BOUNDARY
        _check_interval(f"interval {number}", first, last, unit, ends[-1])
        if unit == units[-1] == WORD_BOUNDARY:
            ends[-1] = last
            continue
        units.append(unit)
        ends.append(max(last, ends[-1]))
    if units[-1] != WORD_BOUNDARY:
        units.append(WORD_BOUNDARY)
        ends.append(ends[-1])
    _check_silent_runs(units)
    return TimedUnits(tuple(units), (start, *ends))


def _check_interval(where: str, first: float, last: float, unit: str, previous: float) -> None:
    if not (math.isfinite(first) and math.isfinite(last) and 0 <= first <= last):
        raise ValueError(f"{where} ('{unit[:MAX_UNIT_LENGTH]}') lasts from {first} to {last} seconds")
    check_unit(unit, where)
    if abs(first - previous) > SLACK_SECONDS:
        what = (
            "overlaps the one before, which ends"
            if first < previous
            else "leaves a gap after the one before, which ends"
        )
        raise ValueError(
            f"{where} ('{unit}') starts at {first} and {what} at {previous} seconds; write pauses as {WORD_BOUNDARY}"
        )
    if last == first and not is_silent(unit):
        raise ValueError(f"{where}: '{unit}' sounds but has no duration")


def check_unit(unit: str, where: str) -> None:
    """Raise ValueError unless a string can be a unit: 1 to 32 printable characters without spaces."""
    if not 0 < len(unit) <= MAX_UNIT_LENGTH or not unit.isprintable() or " " in unit:
        raise ValueError(
            f"{where}: {unit[:MAX_UNIT_LENGTH]!r} is not a unit (1 to {MAX_UNIT_LENGTH} characters, no spaces)"
        )


def _check_silent_runs(units: Sequence[str]) -> None:
    run = 0
    for unit in units:
        run = run + 1 if is_silent(unit) else 0
        if run > MAX_SILENT_RUN:
            raise ValueError(f"more than {MAX_SILENT_RUN} silent units in a row, the last is '{unit}'")


def to_frames(timed: TimedUnits, frame_rate: float, num_frames: int) -> Alignment:
    """Convert seconds to frames.

    Boundaries are rounded to frames; then every sounding unit gets at least one frame by moving boundaries as little as
    possible (the sum of all moves is minimal).

    Args:
        frame_rate: frames per second. num_frames: T, frames of the item.
    Raises:
        ValueError: the times start or end more than a frame away from the item's, or the item has fewer frames than
            sounding units.
    """
    exact = [time * frame_rate for time in timed.boundaries]
    if exact[0] > 1 + 1e-4:
        raise ValueError(f"the alignment starts at {timed.boundaries[0]:g} seconds instead of 0")
    if abs(exact[-1] - num_frames) > 1 + 1e-4:  # times in files have six decimals
        raise ValueError(
            f"the alignment ends at {timed.boundaries[-1]:g} seconds, the recording at {num_frames / frame_rate:g} "
            f"({num_frames} frames)"
        )
    needed = [0 if is_silent(unit) else 1 for unit in timed.units]
    spare = num_frames - sum(needed)
    if spare < 0:
        raise ValueError(f"{sum(needed)} sounding units but only {num_frames} frames")
    # Without the frames that are needed anyway, the boundaries must only be in ascending order.
    wanted, before = [], 0
    for time, need in zip(exact[1:-1], needed, strict=False):
        before += need
        wanted.append(min(max(math.floor(time + 0.5) - before, 0), spare))
    shifted = [0, *nearest_ascending(wanted), spare]
    frames = [last - first + need for first, last, need in zip(shifted, shifted[1:], needed, strict=False)]
    return Alignment(timed.units, tuple(frames))


def nearest_ascending(numbers: Sequence[int]) -> list[int]:
    """The ascending numbers (equal ones allowed) with the smallest sum of absolute differences from the given ones.

    A heap holds where the cost as a function of the last number has its slopes; it takes O(n log n).
    Source: isotonic regression in L1, Rote, "Isotonic Regression by Dynamic Programming", SOSA 2019.
    """
    heap: list[int] = []  # negated: the largest number first
    limits = []
    for number in numbers:
        heapq.heappush(heap, -number)
        if -heap[0] > number:
            heapq.heapreplace(heap, -number)
        limits.append(-heap[0])
    for place in range(len(limits) - 2, -1, -1):
        limits[place] = min(limits[place], limits[place + 1])
    return limits


def to_seconds(alignment: Alignment, frame_rate: float) -> TimedUnits:
    """The times of an alignment in frames."""
    ends = [0]
    for count in alignment.frames:
        ends.append(ends[-1] + count)
    return TimedUnits(alignment.units, tuple(end / frame_rate for end in ends))


def format_alignment(alignment: Alignment) -> str:
    """Units and frames in turn, "| 12 h 3 ə 2 | 5": the form in index.json."""
    return " ".join(f"{unit} {count}" for unit, count in zip(alignment.units, alignment.frames, strict=True))


def parse_alignment(text: str, num_frames: int, where: str) -> Alignment:
    """The alignment written by `format_alignment`; ValueError unless it is valid and has `num_frames` frames."""
    units, counts = text.split(" ")[::2], text.split(" ")[1::2]
    if (
        len(units) != len(counts)
        or len(units) > MAX_UNITS
        or not all(count.isascii() and count.isdigit() for count in counts)
    ):
        raise ValueError(f"{where}: not an alignment, {text[:40]!r}")
    if any(len(count) > 12 for count in counts) or sum(map(int, counts)) != num_frames:
        raise ValueError(f"{where}: its alignment does not have the {num_frames} frames of the item")
    for unit, count in zip(units, counts, strict=True):
        check_unit(unit, where)
        if count == "0" and not is_silent(unit):
            raise ValueError(f"{where}: '{unit}' sounds but has no frame")
    return Alignment(tuple(units), tuple(map(int, counts)))
