"""Text coverage: the characters and words of the training texts, and which parts of a new text they do not cover."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ...configs.schema import Config
from .normalization import spell_words

if TYPE_CHECKING:
    from .base import TextTokenizer

MAX_WORDS = 1000
"""No word list is kept for a corpus with more distinct words: a model trained on it generalizes to other words."""
MOST_NAMED = 5
LONGEST_NAMED = 40
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
"""Scripts that do not separate words by spaces, or that have an unlimited number of word forms."""


class TextSeen(Config):
    """Characters and words of a corpus after normalization."""

    characters: str = Field(default="", max_length=100_000)
    """Distinct characters, sorted; empty: unknown, or the text tokenizer knows them."""
    words: tuple[str, ...] | None = None
    """Distinct words, lower-case and sorted; null: unknown, or more than 1000."""


def seen_in(texts: Iterable[str], reader: TextTokenizer) -> TextSeen | None:
    """Collect the characters and words of texts; None if they are empty."""
    characters: set[str] = set()
    words: set[str] = set()
    for text in texts:
        characters.update(reader.characters(text))
        if len(words) <= MAX_WORDS:
            words.update(_words(text))
    if not characters:
        return None
    few = 0 < len(words) <= MAX_WORDS
    return TextSeen(characters="".join(sorted(characters)), words=tuple(sorted(words)) if few else None)


def unseen_in(texts: Sequence[str], reader: TextTokenizer, seen: TextSeen | None) -> str | None:
    """One sentence that names the new words and characters in texts; None if there are none, or if it is unknown.

    Args:
        seen: coverage of the training texts; None: use only what the text tokenizer itself knows.
    """
    known = frozenset(seen.characters) if seen is not None and seen.characters else reader.known_characters()
    new: list[str] = []
    if seen is not None and seen.words is not None:
        listed = frozenset(seen.words)
        words = dict.fromkeys(word for text in texts for word in _words(text) if word not in listed)
        if words:
            new.append(f"the word{'s' * (len(words) > 1)} {named(list(words))}")
    if known is not None:
        read = (character for text in texts for character in reader.characters(text))
        characters = dict.fromkeys(character for character in read if character not in known)
        if characters:
            each = [f"{_shown(character)} (U+{ord(character):04X})" for character in characters]
            new.append(f"the character{'s' * (len(each) > 1)} {_listed(each)}")
    if not new:
        return None
    return f"the model was not trained on {' or '.join(new)}; its output for that is unpredictable"


def named(words: Sequence[str]) -> str:
    """Format words for an error or a warning: 'a', 'b' and 3 more."""
    return _listed([repr(w if len(w) <= LONGEST_NAMED else f"{w[: LONGEST_NAMED - 3]}...") for w in words])


def _listed(shown: Sequence[str]) -> str:
    if len(shown) > MOST_NAMED:
        return f"{', '.join(shown[:MOST_NAMED])} and {len(shown) - MOST_NAMED} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _shown(character: str) -> str:
    """A quoted character, safe for terminals; combining marks are shown on a dotted circle."""
    if unicodedata.category(character).startswith("M"):
        return f"'\u25cc{character}'"
    return repr(character)


def _words(text: str) -> list[str]:
    return [word for word in spell_words(text).split() if not _UNSPACED.search(word)]
