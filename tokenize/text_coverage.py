"""What the texts of the training data were made of, and what of a text is new to a model that was trained on them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..configs.schema import Config
from .text_normalization import spell_words

if TYPE_CHECKING:
    from .text_tokenizer import TextTokenizer

MAX_WORDS = 1000
"""A corpus of more different words teaches how to read others, and no list of them is kept."""
MOST_NAMED = 5
LONGEST_NAMED = 40
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
"""Scripts whose words no spaces part, or that have forms without number."""


class TextSeen(Config):
    """Characters and words of a corpus, as a model reads them."""

    characters: str = Field(default="", max_length=100_000)
    """Each once, sorted; empty: unknown, or the text tokenizer knows."""
    words: tuple[str, ...] | None = None
    """Lower-case, sorted; null: unknown, or more than 1000."""


def seen_in(texts: Iterable[str], reader: TextTokenizer) -> TextSeen | None:
    """What texts are made of; None where they are empty."""
    characters: set[str] = set()
    words: set[str] = set()
    for text in texts:
        characters.update(reader.read(text))
        if len(words) <= MAX_WORDS:
            words.update(_words(text))
    if not characters:
        return None
    few = 0 < len(words) <= MAX_WORDS
    return TextSeen(characters="".join(sorted(characters)), words=tuple(sorted(words)) if few else None)


def unseen_in(texts: Sequence[str], reader: TextTokenizer, seen: TextSeen | None) -> str | None:
    """One sentence that names the words and characters of texts that are new; None where there are none, or nobody
    knows.

    Args:
        seen: None: only what the text tokenizer itself knows.
    """
    known = frozenset(seen.characters) if seen is not None and seen.characters else reader.known_characters()
    new: list[str] = []
    if seen is not None and seen.words is not None:
        listed = frozenset(seen.words)
        words = dict.fromkeys(word for text in texts for word in _words(text) if word not in listed)
        if words:
            new.append(f"the word{'s' * (len(words) > 1)} {named(list(words))}")
    if known is not None:
        read = (character for text in texts for character in reader.read(text))
        characters = dict.fromkeys(character for character in read if character not in known)
        if characters:
            each = [f"{_shown(character)} (U+{ord(character):04X})" for character in characters]
            new.append(f"the character{'s' * (len(each) > 1)} {_listed(each)}")
    if not new:
        return None
    return f"the model has never read {' or '.join(new)}; what it makes of that is a guess"


def named(words: Sequence[str]) -> str:
    """Words as an error or a warning names them: 'a', 'b' and 3 more."""
    return _listed([repr(w if len(w) <= LONGEST_NAMED else f"{w[: LONGEST_NAMED - 3]}...") for w in words])


def _listed(shown: Sequence[str]) -> str:
    if len(shown) > MOST_NAMED:
        return f"{', '.join(shown[:MOST_NAMED])} and {len(shown) - MOST_NAMED} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _shown(character: str) -> str:
    """A character between quotes, a mark on a dotted circle, and nothing that a terminal would obey."""
    if unicodedata.category(character).startswith("M"):
        return f"'\u25cc{character}'"
    return repr(character)


def _words(text: str) -> list[str]:
    return [word for word in spell_words(text).split() if not _UNSPACED.search(word)]
