"""Text tokenizer `phonemes`: a text as the phonemes that it is spoken as."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import PositiveInt

from ...configs.schema import Config
from .phoneme_symbols import ENGLISH_UNITS, phoneme_units
from .units import Reading, SpokenWord, UnitText


class PhonemeTextConfig(Config):
    """English phonemes with their stress, written between double square brackets: [[həlˈO wˈɜɹld]]."""

    kind: Literal["phonemes"] = "phonemes"
    language: Literal["en"] = "en"
    """Language of the phonemes; en: American English."""
    max_characters: PositiveInt = 4096
    """Longer text raises an error."""


_EXPLICIT = re.compile(r"\[\[([^\[\]]*)\]\]")


class PhonemeText(UnitText):
    """Text tokenizer whose units are phonemes; a text may hold explicit ones, [[həlˈO]]."""

    config: PhonemeTextConfig

    def reading(self, text: str) -> Reading:
        """See UnitText. Raises ValueError if explicit phonemes are none of the language."""
        words: list[SpokenWord] = []
        unread: list[str] = []
        for place, part in enumerate(_EXPLICIT.split(text)):
            if place % 2:
                words += [SpokenWord(word, phoneme_units(word)) for word in part.split()]
            else:
                unread += part.split()
        return Reading(words, list(dict.fromkeys(unread)))


def make_english(config: PhonemeTextConfig) -> PhonemeText:
    """The text tokenizer of English; it learns nothing from a corpus."""
    return PhonemeText(config, ENGLISH_UNITS)
