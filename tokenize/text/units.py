"""Units: what the pointer of an aligned text condition stands on, and text tokenizers whose ids are units.

    "Hello, world!"     ->     | h ə l ˈO , | w ˈɜ ɹ l d ! |

A unit is a string with a sound, or it is silent: the word boundary "|" or a mark of punctuation. Units begin and end
with "|" (the leading and the trailing pause), and between two sounding units stand at most two silent ones, a mark and
then "|".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from ...configs.files import json_bytes
from ...configs.schema import Config
from .base import TextSettings, TextTokenizer
from .coverage import named

UNITS_FILE = "units.json"
WORD_BOUNDARY = "|"
_STRENGTH = ",—;:….!?"
"""Where several marks stand together one stays: the last of these; any other mark is weaker."""


class UnitTable(Config):
    """units.json: the units in the order of their ids."""

    format: Literal["tessera-units"] = "tessera-units"
    version: Literal[1] = 1
    symbols: tuple[str, ...] = Field(min_length=1, max_length=100_000)

    @field_validator("symbols")
    @classmethod
    def _usable(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(symbols)) < len(symbols) or WORD_BOUNDARY not in symbols:
            raise ValueError(f"the units must be different, and '{WORD_BOUNDARY}' one of them")
        if any(not 1 <= len(unit) <= 32 or unit.split() != [unit] for unit in symbols):
            raise ValueError("a unit has 1 to 32 characters and no white space")
        return symbols


@dataclass(frozen=True)
class SpokenWord:
    """A word of a text as written, and the units that it is spoken as."""

    written: str
    units: Sequence[str]
    """May have marks, and word boundaries where it is spoken as several words: "21" as "twenty one"."""


@dataclass(frozen=True)
class Reading:
    """A text as it is read."""

    words: Sequence[SpokenWord]
    unread: Sequence[str]
    """What of the text has no units, each part once."""


class UnitText(TextTokenizer):
    """Text tokenizer whose ids are units.

    Args:
        symbols: the units in the order of their ids.
    """

    def __init__(self, config: TextSettings, symbols: Sequence[str]):
        super().__init__(config)
        self.symbols = tuple(symbols)
        self.silent = frozenset(number for number, unit in enumerate(self.symbols) if is_silent(unit))
        """Ids of the silent units."""
        self.vocab_size = len(self.symbols)
        self._ids = {unit: number for number, unit in enumerate(self.symbols)}

    def reading(self, text: str) -> Reading:
        """The words of a text of any length with their units, all of them in the table."""
        raise NotImplementedError

    def units(self, text: str) -> list[str]:
        """The units of a text. Raises ValueError if nothing of it can be read, or it is longer than the config allows.

        It begins and ends with "|"; between two sounding units stand at most two silent ones, a mark and then "|".
        """
        return self._arranged(text)[0]

    def words(self, text: str) -> list[tuple[str, int, int]]:
        """The words of a text as written, with the range [first, last) of each in `units(text)`.

        The ranges are in order and contain all sounding units. Raises ValueError as `units`.
        """
        return self._arranged(text)[1]

    def encode_units(self, units: Iterable[str]) -> list[int]:
        """Ids of units. Raises ValueError that names a unit which is not in the table."""
        units = list(units)
        unknown = list(dict.fromkeys(unit for unit in units if unit not in self._ids))
        if unknown:
            raise ValueError(
                f"the text tokenizer '{self.config.kind}' does not have the unit {named(unknown)}; it has "
                f"{' '.join(self.symbols[:100])}"
            )
        return [self._ids[unit] for unit in units]

    def encode(self, text: str) -> list[int]:
        """Ids of the units of a text; raises as `units`."""
        return self.encode_units(self.units(text))

    def prepare(self, text: str) -> str:
        """See TextTokenizer."""
        self.units(text)
        return self.read(text)

    def characters(self, text: str) -> str:
        """See TextTokenizer: those of the units."""
        return "".join(unit for word in self.reading(text).words for unit in word.units)

    def names_of_ids(self) -> tuple[str, ...]:
        """See TextTokenizer."""
        return self.symbols

    def unread(self, text: str) -> list[str]:
        """See TextTokenizer."""
        return list(self.reading(text).unread)

    def files(self) -> Mapping[str, bytes]:
        """See TextTokenizer."""
        return {UNITS_FILE: json_bytes(UnitTable(symbols=self.symbols).model_dump(mode="json"))}

    def _arranged(self, text: str) -> tuple[list[str], list[tuple[str, int, int]]]:
        self.check_length(text)
        reading = self.reading(text)
        units, words = arrange(reading.words)
        if not words:
            what = f"; {named(reading.unread)} cannot be read" if reading.unread else ""
            raise ValueError(f"nothing of the text {named([text])} can be spoken{what}; give it letters or numbers")
        return units, words

    def _decode(self, ids: Sequence[int]) -> str:
        return "".join(self.symbols[number] for number in ids).replace(WORD_BOUNDARY, " ").strip()


def is_silent(unit: str) -> bool:
    """Whether a unit has no sound of its own: it contains no letter and no digit."""
    return not any(character.isalpha() or character.isdigit() for character in unit)


def arrange(words: Iterable[SpokenWord]) -> tuple[list[str], list[tuple[str, int, int]]]:
    """Join words with boundaries and reduce each run of silent units to at most a mark and a boundary.

    Returns:
        the units, and (written, first, last) of each word with a sounding unit.
    """
    units, ranges = [WORD_BOUNDARY], []
    silence: list[str] = []
    for word in words:
        silence.append(WORD_BOUNDARY)
        first = 0
        for unit in word.units:
            if is_silent(unit):
                silence.append(unit)
                continue
            if len(units) > 1:
                units += _pause(silence)
            silence = []
            first = first or len(units)
            units.append(unit)
        if first:
            ranges.append((word.written, first, len(units)))
    return units + _pause([*silence, WORD_BOUNDARY] if len(units) > 1 else []), ranges


def _pause(silence: Sequence[str]) -> list[str]:
    """The strongest mark among silent units, then the boundary if there is one."""
    marks = [unit for unit in silence if unit != WORD_BOUNDARY]
    mark = [max(marks, key=_STRENGTH.find)] if marks else []
    return mark + [WORD_BOUNDARY] * (len(marks) < len(silence))
