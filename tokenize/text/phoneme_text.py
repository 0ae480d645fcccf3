"""Text tokenizer `phonemes`: a text as the phonemes that it is spoken as."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field, PositiveInt

from ...configs.schema import Config
from .english.front_end import BUILT_IN, DATA_FILE, EnglishFrontEnd
from .espeak import EspeakFrontEnd, ipa_units
from .phoneme_symbols import ENGLISH_UNITS, phoneme_units
from .units import WORD_BOUNDARY, Reading, SpokenWord, UnitText, is_silent
from .user_lexicon import LEXICON_FILE, lexicon_bytes, parse_lexicon, read_lexicon


class PhonemeTextConfig(Config):
    """Phonemes with their stress, by a pronunciation lexicon and rules for numbers, dates, abbreviations and more.

    A text may hold explicit phonemes in double square brackets: [[həlˈO]].
    """

    kind: Literal["phonemes"] = "phonemes"
    language: str = Field(default="en", pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{1,8}){0,3}$")
    """en: American English, built in. Others by espeak-ng, under its names (de, fr, es-419), where it is installed."""
    lexicon: str | None = None
    """A file with a word, a tab and its phonemes on each line; it is copied into the model directory."""
    max_characters: PositiveInt = 4096
    """Longer text raises an error."""


class FrontEnd(Protocol):
    """Text -> units of one language."""

    lexicon: Mapping[str, str]

    def normalize(self, text: str) -> str: ...

    def read(self, text: str) -> Reading: ...

    def with_lexicon(self, lexicon: Mapping[str, str]) -> FrontEnd: ...


class PhonemeText(UnitText):
    """Text tokenizer whose units are phonemes."""

    config: PhonemeTextConfig

    def __init__(self, config: PhonemeTextConfig, symbols: Sequence[str], front_end: FrontEnd):
        super().__init__(config, symbols)
        self.front_end = front_end
        self._last: tuple[str, Reading] | None = None
        """The last text, which generation reads several times; replaced as a whole, as several threads may read."""

    def reading(self, text: str) -> Reading:
        """See UnitText. Raises ValueError for explicit phonemes that are none, or a language that is not installed."""
        last = self._last
        if last is None or last[0] != text:
            self._last = last = text, self._read(text)
        return last[1]

    def _read(self, text: str) -> Reading:
        found = self.front_end.read(text)
        if all(unit in self._ids for word in found.words for unit in word.units):
            return found
        unread = dict.fromkeys(found.unread)
        words = []
        for word in found.words:
            unread |= {f"[[{unit}]]": None for unit in word.units if unit not in self._ids and not is_silent(unit)}
            words.append(SpokenWord(word.written, [unit for unit in word.units if unit in self._ids]))
        return Reading(words, list(unread))

    def read(self, text: str) -> str:
        """See TextTokenizer: the words and marks as they are spoken, "" if there is no word."""
        normalized = self.front_end.normalize(text)
        return normalized if any(character.isalnum() for character in normalized) else ""

    def spell(self, text: str) -> str:
        """See TextTokenizer."""
        return self.front_end.normalize(text)

    def encode_units(self, units: Iterable[str]) -> list[int]:
        """See UnitText. A phoneme of English in other IPA (oʊ, tʃ, a stressed consonant), as alignments of other
        sources have it, stands for the one in the table."""
        return super().encode_units(unit if unit in self._ids else self._in_table(unit) for unit in units)

    def _in_table(self, unit: str) -> str:
        """The unit of the table that a phoneme in other IPA stands for; itself if there is none."""
        found = phoneme_units(unit, []) if self.config.language == "en" else []
        return found[0] if len(found) == 1 and not is_silent(unit) else unit

    def files(self) -> dict[str, bytes]:
        """See TextTokenizer."""
        data = {DATA_FILE: self.front_end.data} if isinstance(self.front_end, EnglishFrontEnd) else {}
        return {**super().files(), LEXICON_FILE: lexicon_bytes(self.front_end.lexicon), **data}

    def _decode(self, ids: Sequence[int]) -> str:
        raise ValueError(
            "the text tokenizer 'phonemes' has no decode: its ids are sounds, which several texts share; names_of_ids "
            "has the phoneme of each"
        )

    def with_lexicon(self, path: str | Path) -> PhonemeText:
        """See TextTokenizer."""
        words = {**self.front_end.lexicon, **read_lexicon(path, splitter(self.config.language))}
        return PhonemeText(self.config, self.symbols, self.front_end.with_lexicon(words))


def learn_phonemes(config: PhonemeTextConfig, sentences: Iterable[str]) -> PhonemeText:
    """The text tokenizer of a language; the table of English is fixed, that of others holds the units of the corpus.

    Raises:
        ValueError: no sentences to learn units from, or an unusable lexicon. FileNotFoundError: no such lexicon.
    """
    lexicon = {} if config.lexicon is None else read_lexicon(config.lexicon, splitter(config.language))
    if config.language == "en":
        return PhonemeText(config, ENGLISH_UNITS, EnglishFrontEnd(BUILT_IN.read_bytes(), str(BUILT_IN), lexicon))
    front_end = EspeakFrontEnd(config.language, lexicon)
    found = {unit for sentence in sentences for word in front_end.read(sentence).words for unit in word.units}
    if all(is_silent(unit) for unit in found):
        raise ValueError("the text tokenizer has no sentences to learn phonemes from; add transcripts")
    return PhonemeText(config, [WORD_BOUNDARY, *sorted(found - {WORD_BOUNDARY})], front_end)


def load_phonemes(
    config: PhonemeTextConfig, symbols: Sequence[str], files: Mapping[str, bytes], folder: Path
) -> PhonemeText:
    """The text tokenizer of a model directory, with the contents of its files."""
    lexicon = parse_lexicon(files[LEXICON_FILE], str(folder / LEXICON_FILE), splitter(config.language))
    if config.language != "en":
        return PhonemeText(config, symbols, EspeakFrontEnd(config.language, lexicon))
    return PhonemeText(config, symbols, EnglishFrontEnd(files[DATA_FILE], str(folder / DATA_FILE), lexicon))


def splitter(language: str) -> Callable[[str], list[str]]:
    """What splits phoneme strings of a language into units."""
    return phoneme_units if language == "en" else ipa_units
