"""Splits a long text into chunks: after sentences, else after clauses, else between words. A word that is too long by
itself is split after its punctuation, else anywhere.

    limit 12    "One two. Three, four five six."     ->    "One two."  "Three,"  "four five"  "six."

Adjacent parts are merged up to the limit, into chunks of about equal length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from ...tokenize.text.abbreviations import is_abbreviation

_CLOSING = r"""["'”’»)\]]*"""
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
"""Scripts without spaces between words, in which each character counts as a word."""
_BREAKS = (
    re.compile(rf"(?<=[.!?…]){_CLOSING}\s+|(?<=[。！？]){_CLOSING}\s*|\s*\n+\s*"),
    re.compile(rf"(?<=[,;:]){_CLOSING}\s+|(?<=[、，；：]){_CLOSING}\s*|\s+[-–—]\s+|(?<=—)"),
    re.compile(rf"\s+|(?<=[{_WIDE}])(?=[{_WIDE}])"),
    re.compile(r"""(?<=[-–—_/\\.,:;!?…@#&+=~|*%<>(){}"“”\[\]])(?=[^\W_])"""),
)
"""Where a text may be split, best places first. A full stop inside a number is not followed by a space."""
_INSIDE = 3
"""Index of the break inside a word."""
_JOINER = "\u200d"


def split_text(
    text: str,
    limit: int,
    size: Callable[[str], int] = len,
    longest_word: int | None = None,
    cut_words: list[str] | None = None,
) -> list[str]:
    """Split a text into chunks no longer than `limit`, except for long words.

    Args:
        size: length of a chunk, in the unit of the limit; chunks of length 0 (only punctuation) join their neighbor.
        longest_word: words up to this length are not split; None: the limit.
        cut_words: receives the words that had to be split where they have no punctuation.
    Returns:
        the chunks in order, stripped; joined, they equal the text except for white space.
    Raises:
        ValueError: limit below 1.
    """
    if limit < 1:
        raise ValueError(f"the limit of a chunk must be at least 1, found {limit}")
    cut = [] if cut_words is None else cut_words
    chunks = _split(text.strip(), limit, size, 0, max(limit, longest_word or 0), cut)
    merged: list[str] = []
    for chunk in chunks:
        if merged and (not size(chunk) or not size(merged[-1])):
            merged[-1] = f"{merged[-1]} {chunk}"
        else:
            merged.append(chunk)
    return merged


def _split(
    text: str, limit: int, size: Callable[[str], int], level: int, longest_word: int, cut_words: list[str]
) -> list[str]:
    if size(text) <= (longest_word if level >= _INSIDE else limit):
        return [text] if text else []
    if level == len(_BREAKS):
        cut_words.append(text)
        return _cut_inside(text, longest_word, size)
    parts = _cut(text, _BREAKS[level])
    glue = " "
    if level == _INSIDE:  # there is no space inside a word
        glue, limit = "", longest_word
    if all(size(part) <= limit for part in parts):
        return _pack(parts, limit, size, glue)
    found: list[str] = []
    group: list[str] = []
    for part in [*parts, None]:
        if part is not None and size(part) <= limit:
            group.append(part)
            continue
        found += _pack(group, limit, size, glue)
        group = []
        found += [] if part is None else _split(part, limit, size, level + 1, longest_word, cut_words)
    return found


def _cut(text: str, where: re.Pattern[str]) -> list[str]:
    """Split the text at its breaks; closing marks stay with what they close."""
    parts, start = [], 0
    for found in where.finditer(text):
        before = text[start : found.start()].split()[-1:]
        if where is _BREAKS[0] and before and "\n" not in found.group() and is_abbreviation(before[0]):
            continue
        end = found.end() if found.group().strip() else found.start()
        parts.append(text[start:end].strip())
        start = end
    return [part for part in [*parts, text[start:].strip()] if part]


def _cut_inside(word: str, limit: int, size: Callable[[str], int]) -> list[str]:
    """Split a word into parts of about equal length; combining marks and joined characters stay with their letters."""
    letters: list[str] = []
    for character in word:
        if letters and (unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or letters[-1].endswith(_JOINER)):
            letters[-1] += character
        else:
            letters.append(character)
    parts, start = [], 0
    fewest = -(-size(word) // limit)
    while start < len(letters):
        left = max(1, fewest - len(parts))
        count = min(-(-(len(letters) - start) // left), limit)
        while count > 1 and size("".join(letters[start : start + count])) > limit:
            count -= 1
        parts.append("".join(letters[start : start + count]))
        start += count
    return parts


def _pack(parts: list[str], limit: int, size: Callable[[str], int], glue: str) -> list[str]:
    """Merge parts into the fewest chunks the limit allows, with the smallest limit that needs no more chunks."""
    if not parts:
        return []
    fewest = len(_greedy(parts, limit, size, glue))
    low, high = max(size(part) for part in parts), limit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_greedy(parts, middle, size, glue)) <= fewest else (middle + 1, high)
    return _greedy(parts, low, size, glue)


def _greedy(parts: list[str], limit: int, size: Callable[[str], int], glue: str) -> list[str]:
    chunks = [parts[0]]
    for part in parts[1:]:
        wide = re.match(f"[{_WIDE}]", part) and re.search(f"[{_WIDE}。！？、，；：]$", chunks[-1])
        joined = f"{chunks[-1]}{'' if wide else glue}{part}"
        if size(joined) <= limit:
            chunks[-1] = joined
        else:
            chunks.append(part)
    return chunks
