"""A long text in pieces that a model can say: cut behind sentences, else behind clauses, else between words.

    limit 12    "One two. Three, four five six."     ->    "One two."  "Three,"  "four five"  "six."

Neighbours are put together again as far as they fit, in pieces about equally long. Words are never cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_CLOSING = r"""["'”’»)\]]*"""
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
"""Scripts that put no spaces between words: there each character counts as one."""
_BREAKS = (
    re.compile(rf"(?<=[.!?…]){_CLOSING}\s+|(?<=[。！？]){_CLOSING}\s*|\s*\n+\s*"),
    re.compile(rf"(?<=[,;:]){_CLOSING}\s+|(?<=[、，；：]){_CLOSING}\s*|\s+[-–—]\s+|(?<=—)"),
    re.compile(rf"\s+|(?<=[{_WIDE}])(?=[{_WIDE}])"),
)
"""Where a text may be cut, the best places first. A full stop inside a number is followed by no space."""


def split_text(text: str, limit: int, size: Callable[[str], int] = len) -> list[str]:
    """Cut a text into pieces that are not longer than `limit`, but for words that are longer by themselves.

    Args:
        size: length of a piece, in the unit of the limit; what has none (punctuation alone) joins its neighbour.
    Returns:
        the pieces in order, stripped; joined they are the text but for white space.
    Raises:
        ValueError: limit below 1.
    """
    if limit < 1:
        raise ValueError(f"the limit of a piece must be at least 1, found {limit}")
    pieces = _split(text.strip(), limit, size, 0)
    said: list[str] = []
    for piece in pieces:
        if said and (not size(piece) or not size(said[-1])):
            said[-1] = f"{said[-1]} {piece}"
        else:
            said.append(piece)
    return said


def _split(text: str, limit: int, size: Callable[[str], int], level: int) -> list[str]:
    if size(text) <= limit or level == len(_BREAKS):
        return [text] if text else []
    parts = _cut(text, _BREAKS[level])
    if all(size(part) <= limit for part in parts):
        return _pack(parts, limit, size)
    found: list[str] = []
    group: list[str] = []
    for part in [*parts, None]:
        if part is not None and size(part) <= limit:
            group.append(part)
            continue
        found += _pack(group, limit, size)
        group = []
        found += [] if part is None else _split(part, limit, size, level + 1)
    return found


def _cut(text: str, where: re.Pattern[str]) -> list[str]:
    """The text at its breaks; closing marks stay with what they close."""
    parts, start = [], 0
    for found in where.finditer(text):
        end = found.end() if found.group().strip() else found.start()
        parts.append(text[start:end].strip())
        start = end
    return [part for part in [*parts, text[start:].strip()] if part]


def _pack(parts: list[str], limit: int, size: Callable[[str], int]) -> list[str]:
    """Parts put together, in as few pieces as the limit allows and with the smallest limit that needs no more."""
    if not parts:
        return []
    fewest = len(_greedy(parts, limit, size))
    low, high = max(size(part) for part in parts), limit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_greedy(parts, middle, size)) <= fewest else (middle + 1, high)
    return _greedy(parts, low, size)


def _greedy(parts: list[str], limit: int, size: Callable[[str], int]) -> list[str]:
    pieces = [parts[0]]
    for part in parts[1:]:
        glue = "" if re.match(f"[{_WIDE}]", part) and re.search(f"[{_WIDE}。！？、，；：]$", pieces[-1]) else " "
        joined = f"{pieces[-1]}{glue}{part}"
        if size(joined) <= limit:
            pieces[-1] = joined
        else:
            pieces.append(part)
    return pieces
