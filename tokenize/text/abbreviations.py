"""Full stops that end no sentence: after an English title, an initial, or an abbreviation like "e.g."."""

from __future__ import annotations

import re

from .english.tables import NEVER_LAST, TITLES

_INITIAL = re.compile(r"[A-HJ-Z]\.")
_MARKS = "\"'“”‘’«»()[]"


def is_abbreviation(word: str) -> bool:
    """Whether the full stop at the end of a word is that of an abbreviation, and the sentence goes on: "Dr.", "J."."""
    word = word.strip(_MARKS)
    return word.endswith(".") and (word[:-1] in TITLES or word in NEVER_LAST or bool(_INITIAL.fullmatch(word)))
