"""Text tokenizer `characters`: the characters of the corpus as units."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Literal

from pydantic import PositiveInt

from ...configs.schema import Config
from .base import normalise, spell
from .units import WORD_BOUNDARY, Reading, SpokenWord, UnitText, is_silent

MOST_MARKS = 16
"""Combining marks after a character that are kept."""
_PLAIN = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "."}
"""Typographic marks and what stands for them on a keyboard."""


class CharacterTextConfig(Config):
    """A table of the characters of the corpus; a space is the word boundary."""

    kind: Literal["characters"] = "characters"
    normalise: Literal["none", "words"] = "none"
    """words: "It's 31°!" becomes "it's three one" (see `spell_words`). none: unchanged, punctuation marks are units."""
    max_characters: PositiveInt = 4096
    """Longer text raises an error."""


class CharacterText(UnitText):
    """Text tokenizer whose units are characters, each with its combining marks; others than in the table are left
    out."""

    config: CharacterTextConfig

    def reading(self, text: str) -> Reading:
        """See UnitText."""
        words, unread = [], {}
        for written in text.split():
            units = []
            for unit in split_characters(normalise(written, self.config.normalise)):
                known = next((form for form in _forms(unit) if form in self._ids), None)
                if known is not None:
                    units.append(known)
                elif unicodedata.category(unit[0]).startswith("P"):
                    units.append(WORD_BOUNDARY)
                else:
                    unread[unit] = None
            words.append(SpokenWord(written, units))
        return Reading(words, list(unread))

    def read(self, text: str) -> str:
        """See TextTokenizer."""
        return normalise(text, self.config.normalise)

    def num_characters(self, text: str) -> int:
        """See TextTokenizer."""
        units = split_characters(self.read(text))
        spoken = (form for unit in units for form in _forms(unit) if form in self._ids and not is_silent(form))
        return super().num_characters(text) if any(spoken) else 0

    def spell(self, text: str) -> str:
        """See TextTokenizer."""
        return spell(text, self.config.normalise)


def learn_characters(config: CharacterTextConfig, sentences: Iterable[str]) -> CharacterText:
    """A table of the characters of sentences. Raises ValueError if none of them has a letter or a digit."""
    found: set[str] = set()
    for sentence in sentences:
        found.update(split_characters(normalise(sentence, config.normalise)))
    if all(is_silent(unit) for unit in found):
        raise ValueError("the text tokenizer has no sentences to learn characters from; add transcripts")
    return CharacterText(config, [WORD_BOUNDARY, *sorted(found - {WORD_BOUNDARY})])


def split_characters(text: str) -> list[str]:
    """The characters of a text, each with the combining marks after it; white space is the word boundary, and control
    and format characters are left out."""
    if text.isascii():
        return [WORD_BOUNDARY if unit.isspace() else unit for unit in text if unit.isprintable() or unit.isspace()]
    units: list[str] = []
    for character in unicodedata.normalize("NFC", text):
        category = unicodedata.category(character)
        if character.isspace():
            units.append(WORD_BOUNDARY)
        elif category[0] == "M":
            if units and units[-1] != WORD_BOUNDARY and len(units[-1]) < MOST_MARKS:
                units[-1] += character
        elif category[0] != "C":
            units.append(character)
    return units


def _forms(unit: str) -> list[str]:
    """A unit, and what it may be read as if it is not in the table."""
    plain = _PLAIN.get(unit, unit[0])
    return [unit, plain, plain.lower(), plain.upper()]
