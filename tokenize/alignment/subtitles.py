"""Subtitles in the SubRip format (.srt) from the times of words.

    1
    00:00:00,100 --> 00:00:01,425
    Hello, world!

A cue ends after a sentence, before a long pause, and where it would be too long to read in one line.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..text.abbreviations import is_abbreviation
from .spoken_text import TimedWord

MAX_CHARACTERS = 42
"""Characters of a cue, the usual limit of one line."""
MAX_SECONDS = 6.0
PAUSE_SECONDS = 0.6
"""A silence between words that begins a new cue."""
SENTENCE_ENDS = (".", "!", "?", "…")


def to_srt(words: Sequence[TimedWord]) -> str:
    """The text of an .srt file; "" without words."""
    cues: list[list[TimedWord]] = []
    for word in words:
        if cues and _joins(cues[-1], word):
            cues[-1].append(word)
        else:
            cues.append([word])
    blocks = [
        f"{number}\n{_clock(cue[0].start)} --> {_clock(cue[-1].end)}\n{' '.join(word.word for word in cue)}\n"
        for number, cue in enumerate(cues, start=1)
    ]
    return "\n".join(blocks)


def _joins(cue: Sequence[TimedWord], word: TimedWord) -> bool:
    """Whether a word belongs to the cue before it."""
    length = sum(len(one.word) + 1 for one in cue) + len(word.word)
    before = cue[-1].word
    ended = before.rstrip("\"')]”’").endswith(SENTENCE_ENDS) and not is_abbreviation(before)
    pause, seconds = word.start - cue[-1].end, word.end - cue[0].start
    return not ended and length <= MAX_CHARACTERS and pause < PAUSE_SECONDS and seconds <= MAX_SECONDS


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"
