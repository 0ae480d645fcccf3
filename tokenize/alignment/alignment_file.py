"""Alignments in files: NAME.align, NAME.TextGrid, and the key `alignment` of metadata.jsonl.

    NAME.align       a line per unit, start<TAB>end<TAB>unit in seconds: a label track of Audacity
    NAME.TextGrid    Praat's text format, long or short; the interval tier is called units or phones
    alignment        [[start, end, unit], ...]

An empty unit, and `sil` and `sp` in a TextGrid, are pauses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .alignment import MAX_UNITS, TimedUnits, time_units

EXTENSIONS = (".align", ".TextGrid")
MAX_FILE_BYTES = 16 << 20
TIERS = ("units", "phones")
SILENCES = ("sil", "sp")
"""Labels of pauses in TextGrids of forced aligners."""
_NUMBER = re.compile(r"[+-]?\d{1,12}(\.\d{0,20})?([eE][+-]?\d{1,3})?", re.ASCII)
_PRAAT_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)(<exists>|<absent>)(?!\S)|(?<!\S)([+-]?\d\S*)')
"""Praat reads only strings, flags and numbers that stand alone; everything else explains them."""


def read_alignment(data: bytes, extension: str) -> TimedUnits:
    """Parse a file of one of EXTENSIONS. Raises ValueError with the line or interval and what is wrong with it."""
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
    utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None
    return time_units(_label_track(text) if extension == EXTENSIONS[0] else _text_grid(text))


def write_alignment(timed: TimedUnits) -> bytes:
    """The content of NAME.align."""
    times = zip(timed.boundaries, timed.boundaries[1:], timed.units, strict=False)
    return "".join(f"{start:.6f}\t{end:.6f}\t{unit}\n" for start, end, unit in times).encode()


def read_intervals(rows: Sequence[Any]) -> TimedUnits:
    """Intervals [start, end, unit] from JSON. Raises ValueError like `read_alignment`."""
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, list | tuple) and len(row) == 3 and isinstance(row[2], str) and _are_numbers(row[:2])):
            raise ValueError(f"interval {number} is not [start, end, unit]")
    return time_units([(float(start), float(end), unit) for start, end, unit in rows])


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _label_track(text: str) -> list[tuple[float, float, str]]:
    intervals = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        fields = line.removesuffix("\r").split("\t")
        if len(fields) != 3 or not (_NUMBER.fullmatch(fields[0]) and _NUMBER.fullmatch(fields[1])):
            raise ValueError(f"line {number} is not start<TAB>end<TAB>unit, {line[:40]!r}")
        if number > MAX_UNITS:
            raise ValueError(f"more than {MAX_UNITS} lines")
        intervals.append((float(fields[0]), float(fields[1]), fields[2].strip()))
    return intervals


def _text_grid(text: str) -> list[tuple[float, float, str]]:
    """The intervals of the first tier with one of the names TIERS."""
    tokens = _praat_tokens(text)
    if (_string(tokens), _string(tokens)) != ("ooTextFile", "TextGrid"):
        raise ValueError("not a TextGrid in Praat's text format")
    _skip_range(tokens)
    if next(tokens, None) != "<exists>":
        raise ValueError("a TextGrid without tiers")
    found: dict[str, list[tuple[float, float, str]]] = {}
    for _ in range(_count(tokens)):
        kind, name = _string(tokens), _string(tokens)
        _skip_range(tokens)
        if kind not in ("IntervalTier", "TextTier"):
            raise ValueError(f"a tier of class {kind[:40]!r}")
        rows = []
        for _ in range(_count(tokens)):
            start = _number(tokens)
            end = _number(tokens) if kind == "IntervalTier" else start
            label = _string(tokens).strip()
            rows.append((start, end, "" if label.lower() in SILENCES else label))
        if kind == "IntervalTier":
            found.setdefault(name.lower(), rows)
    for name in TIERS:
        if name in found:
            return found[name]
    named = ", ".join(sorted(found))[:100] or "none"
    raise ValueError(f"no interval tier is called {' or '.join(TIERS)}; its interval tiers: {named}")


def _praat_tokens(text: str) -> Iterator[str | float]:
    """Strings with a quote before them, flags, and numbers."""
    for found in _PRAAT_TOKEN.finditer(text):
        string, flag, number = found.groups()
        if string is not None:
            yield '"' + string.replace('""', '"')
        elif flag is not None:
            yield flag
        elif _NUMBER.fullmatch(number):
            yield float(number)
        else:
            raise ValueError(f"{number[:40]!r} is not a number")


def _string(tokens: Iterator[str | float]) -> str:
    token = next(tokens, None)
    if not isinstance(token, str) or not token.startswith('"'):
        raise ValueError(f"not a complete TextGrid: expected a text in quotes, found {token!r:.40}")
    return token[1:]


def _number(tokens: Iterator[str | float]) -> float:
    token = next(tokens, None)
    if not isinstance(token, float):
        raise ValueError(f"not a complete TextGrid: expected a number, found {token!r:.40}")
    return token


def _skip_range(tokens: Iterator[str | float]) -> None:
    """The times at which the grid or a tier begins and ends."""
    _number(tokens)
    _number(tokens)


def _count(tokens: Iterator[str | float]) -> int:
    number = _number(tokens)
    if not (number.is_integer() and 0 <= number <= MAX_UNITS):
        raise ValueError(f"{number:g} tiers or intervals; 0 to {MAX_UNITS} are possible")
    return int(number)
