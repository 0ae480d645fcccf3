"""Words as phonemes in the company of their neighbours: weak forms, uses of a word, capitals, compounds, new words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from ..phoneme_symbols import CONSONANTS, MARKS, SECONDARY
from . import stress
from .lexicon import Lexicon, add_s, by_use
from .number_words import ONES, SCALES, TENS
from .tables import GREEK

Uses = Callable[[Sequence[str], int], str]
"""(words and marks of a text, place) -> the use of the word at the place, one of `lexicon.USES` or ""."""
Unknown = Callable[[str], str]
"""Letters a to z of a word that is in no lexicon -> phonemes."""

_LATIN = str.maketrans(
    {
        **{"ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "th"},
        **{"þ": "th", "Þ": "Th", "ı": "i", "œ": "oe", "Œ": "Oe", "ħ": "h", "ŋ": "ng", "ʻ": "'", "ʼ": "'"},
    }
)
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z']+")
_SPELLED = frozenset(
    "AD AI AM BA CD DA EEG ER ETA EU GI GIS HMS ID IDE IO IRA IT LA LED MA MIT MS NGO OS PC PM POW RAF RIP ROI SAT SEC "
    "SEO TA TV UN UPS US WHO".split()
)
"""Short words in capitals that are spelled although the lexicon has them as words."""
NUMBERS = frozenset((*ONES, *TENS, *SCALES, "hundred"))
_SOUNDS = frozenset(stress.VOWELS + CONSONANTS)
"""What the weak forms before a word depend on; the article ɐ leaves it to what follows."""


class Pronouncer:
    """Words -> phonemes.

    Args:
        lexicon: pronunciations of words.
        uses: tells the uses of a word apart.
        unknown: pronounces words that are in no lexicon.
    """

    def __init__(self, lexicon: Lexicon, uses: Uses, unknown: Unknown):
        self.lexicon = lexicon
        self.uses = uses
        self.unknown = unknown

    def __call__(self, words: Sequence[str]) -> list[str | None]:
        """Phonemes of each word; a mark stands for itself, explicit phonemes in double square brackets for what is in
        them, and None for a word without a letter that English can read."""
        words = _as_if_not_shouted(words)
        said: list[str | None] = [None] * len(words)
        before_vowel: bool | None = None  # None: a pause follows
        for place in range(len(words) - 1, -1, -1):
            word = words[place]
            if word in MARKS:
                said[place], before_vowel = word, None
                continue
            phonemes = word[2:-2] if word.startswith("[[") else self._in_context(words, place, before_vowel)
            said[place] = phonemes
            if phonemes:
                before_vowel = next((s in stress.VOWELS for s in phonemes if s in _SOUNDS), before_vowel)
        return said

    def _in_context(self, words: Sequence[str], place: int, before_vowel: bool | None) -> str | None:
        word = words[place]
        weak = self._weak_form(words, place, before_vowel)
        if weak is not None:
            return weak
        entry = self.lexicon.entry(word)
        use = ""
        if entry is not None and len(entry) > 1:
            use = "PAUSE" if before_vowel is None and "PAUSE" in entry else self.uses(words, place)
        phonemes = self.word(word, use)
        return phonemes if phonemes is None or word.islower() else stress.add(phonemes, SECONDARY)

    def _weak_form(self, words: Sequence[str], place: int, before_vowel: bool | None) -> str | None:
        """Function words whose sound depends on what follows."""
        word = words[place]
        match word.lower():
            case "the":
                return "ði" if before_vowel else "ðə"
            case "a":
                return "ˈA" if self._is_letter(words, place) else "ɐ"
            case "an":
                return "ɐn"
            case "to":
                return {None: "tu", False: "tə", True: "tʊ"}[before_vowel]
            case "in":
                return "ˈɪn" if before_vowel is None else "ɪn"
            case "i" if word == "I":
                return "ˌI"
            case "am" if word == "am":
                return "æm" if before_vowel is None else "ɐm"
            case "point" if 0 < place < len(words) - 1 and words[place - 1] in NUMBERS and words[place + 1] in ONES:
                return "pYnt"
            case "used":
                follows = words[place + 1].lower() if place + 1 < len(words) else ""
                return "jˈust" if follows == "to" and self.uses(words, place) != "PARTICIPLE" else "jˈuzd"
        return None

    def _is_letter(self, words: Sequence[str], place: int) -> bool:
        """Whether an A is the letter: a pause or a single capital follows, or it is not where articles are."""
        after = words[place + 1] if place + 1 < len(words) else "."
        before = words[place - 1] if place else "."
        if after in MARKS:
            return True
        beside = len(after) == 1 and after.isupper() and after != "I"
        return words[place] == "A" and (beside or (before not in MARKS and before[:1].isupper()))

    def word(self, word: str, use: str = "") -> str | None:
        """Phonemes of one word by itself; None if it has no letter that English can read."""
        if word.isupper() and word.isalpha() and len(word) > 1 and self._is_spelled(word):
            return self._letters(word)
        forms = (word, word[0].lower() + word[1:], word.lower() if word.isupper() else word)
        entry = next((entry for entry in map(self.lexicon.entry, forms) if entry is not None), None)
        if entry is not None:
            return by_use(entry, use)
        if "-" in word:
            return self._hyphenated([part for part in word.split("-") if part])
        plain = plain_letters(word)
        if plain != word:
            return self.word(plain, use) if plain else None
        return self._unknown(word) if word.islower() else self._in_parts(word)

    def _hyphenated(self, parts: list[str]) -> str | None:
        said = [phonemes for phonemes in self(["[[ˈA]]" if part == "A" else part for part in parts]) if phonemes]
        if all(len(part) == 1 or (len(part) == 3 and part.endswith("'s")) for part in parts):
            return stress.spelled(said) or None
        if len(said) == 2 and len(parts[0]) == 1:  # A-bomb
            return said[0] + stress.weaken(said[1])
        return stress.compound(said) or None

    def _in_parts(self, word: str) -> str | None:
        """A word with capitals inside or at its end: spelled, or cut in front of capitals (iPhone, GitHub, CPUs)."""
        if word[1:].islower():
            return self._unknown(word.lower())
        plural = re.fullmatch(r"([A-Z]{2,6})('?s)", word)
        if plural:
            letters = self._letters(plural[1])
            return letters and add_s(letters)
        parts = _CAMEL.findall(word)
        if len(parts) < 2:
            return self._unknown(word.lower()) if not self._is_spelled(word) else self._letters(word)
        said = [self._letters(part) if len(part) == 1 else self.word(part) for part in parts]
        return stress.compound([phonemes for phonemes in said if phonemes]) or None

    def _is_spelled(self, word: str) -> bool:
        """Whether a word in capitals is spelled: it is no word of the lexicon, or known for being spelled."""
        if word in _SPELLED:
            return True
        if word in self.lexicon or (len(word) > 2 and word.lower() in self.lexicon):
            return False
        return len(word) < 5 or not re.search("[AEIOUY]", word)

    def _letters(self, word: str) -> str | None:
        """The names of letters as one word."""
        names = [self.lexicon.entry(letter.upper()) for letter in word if letter.isalpha()]
        return stress.spelled([name[""] for name in names if name]) or None

    def _unknown(self, word: str) -> str | None:
        if word in GREEK:
            return self.word(GREEK[word])
        letters = re.sub("[^a-z']", "", word)
        if not letters.strip("'"):
            return None
        if not re.search("[aeiouy]", letters) and len(letters) < 6:
            return self._letters(letters)
        return self.unknown(letters)


def plain_letters(word: str) -> str:
    """A word in the letters of English: without accents, and with pairs of letters for special ones; "" if it has
    none."""
    if word.isascii():
        return word
    plain = unicodedata.normalize("NFKD", word.translate(_LATIN))
    return "".join(letter for letter in plain if letter.isascii() and (letter.isalpha() or letter in "'-")).strip("'-")


def _as_if_not_shouted(words: Sequence[str]) -> Sequence[str]:
    """STOP THE CAR: words in lower case if all of several are in capitals."""
    capitals = [word for word in words if len(word) > 1 and word.isupper() and word.isalpha()]
    lower = any(word.islower() for word in words if word.isalpha())
    if lower or len(capitals) < 2 or max(map(len, capitals)) < 4:
        return words
    return [word.lower() if len(word) > 1 and word.isalpha() else word for word in words]
