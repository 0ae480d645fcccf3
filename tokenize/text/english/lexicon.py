"""The pronunciation lexicon: words, their inflected forms, and words with several pronunciations.

A lexicon is a sorted text, a word a line, and looked up by bisection, so that loading it builds nothing:

    record<TAB>ɹˈɛkəɹd<TAB>VERB=ɹəkˈɔɹd
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

Entry = dict[str, str]
"""Phonemes by use; "" where no other use fits."""
USES = ("NOUN", "VERB", "PAST", "PARTICIPLE", "ADJECTIVE", "ADVERB", "DETERMINER", "PAUSE")
"""Uses of a word that a lexicon may distinguish. PAST and PARTICIPLE fall back on VERB; PAUSE: a pause follows."""
VOICELESS = "pkfθʃsʧ"
HISSING = "szʃʒʧʤ"
FLAPPING = "AIOWYiuæɑəɛɪɹʊʌ"
"""A t between one of these and a vowel is a flap."""
_DOUBLED = "bcdgklmnprstvxz"


class Lexicon:
    """Words and their phonemes.

    Args:
        text: UTF-8 lines sorted by their bytes: word, phonemes, and USE=phonemes of a certain use of the word,
            separated by tabs.
    """

    def __init__(self, text: bytes):
        self._text = text
        self.entry = lru_cache(maxsize=50_000)(self._entry)
        """word -> its entry, or that of an inflected form of a word; None if unknown. A capitalized word is also found
        in lower case, and a lower-case word capitalized."""

    def __contains__(self, word: str) -> bool:
        return self.entry(word) is not None

    def _entry(self, word: str) -> Entry | None:
        found = self._with_case(word)
        return self._inflected(word) if found is None else found

    def _inflected(self, word: str) -> Entry | None:
        for inflection in INFLECTIONS:
            for stem, ending in inflection(word):
                found = self._with_case(stem)
                if found is not None:
                    return inflect(found, ending)
        return None

    def _with_case(self, word: str) -> Entry | None:
        found = self._line(word)
        if found is None and len(word) > 1:
            if word.islower():
                found = self._line(word[0].upper() + word[1:])
            elif word[1:].islower():
                found = self._line(word[0].lower() + word[1:])
        return found

    def _line(self, word: str) -> Entry | None:
        text, wanted = self._text, word.encode() + b"\t"
        low, high = 0, len(text)
        while low < high:  # a line that begins in [low, high)
            start = text.rfind(b"\n", low, (low + high) // 2) + 1 or low
            end = text.find(b"\n", start)
            end = len(text) if end < 0 else end
            line = text[start:end]
            if line.startswith(wanted):
                default, *others = line[len(wanted) :].decode().split("\t")
                return {"": default, **dict(other.split("=", 1) for other in others)}
            if line < wanted:
                low = end + 1
            else:
                high = start
        return None


def by_use(entry: Entry, use: str) -> str:
    """The phonemes of an entry for a use."""
    if use in ("PAST", "PARTICIPLE") and use not in entry:
        use = "VERB"
    return entry.get(use, entry[""])


Inflection = list[tuple[str, Callable[[str], str]]]
"""Possible stems of a word, and what its ending adds to the phonemes of the stem."""


def add_s(stem: str) -> str:
    """cats, dogs, churches."""
    return stem + ("s" if stem[-1] in "ptkfθ" else "ᵻz" if stem[-1] in HISSING else "z")


def _add_d(stem: str) -> str:
    """walked, loved, wanted, waited with a flap."""
    if stem[-1] == "t":
        return stem[:-1] + "Tᵻd" if len(stem) > 1 and stem[-2] in FLAPPING else stem + "ᵻd"
    return stem + ("t" if stem[-1] in VOICELESS else "ᵻd" if stem[-1] == "d" else "d")


def _add_ing(stem: str) -> str:
    """walking, waiting with a flap."""
    return stem[:-1] + "Tɪŋ" if len(stem) > 1 and stem[-1] == "t" and stem[-2] in FLAPPING else stem + "ɪŋ"


def inflect(entry: Entry, ending: Callable[[str], str]) -> Entry:
    """What an ending makes of the entry of a stem; -ed and -ing follow verbs only."""
    if ending in (_add_d, _add_ing):
        return {"": ending(by_use(entry, "VERB"))}
    return {use: ending(phonemes) for use, phonemes in entry.items()}


def _genitive(word: str) -> Inflection:
    """owner's, owners', wolves'."""
    if word.endswith("'s"):
        return [(word[:-2], add_s)]
    return [(word[:-1], str), *_with_s(word[:-1])] if word.endswith("'") else []


def _with_s(word: str) -> Inflection:
    if len(word) < 3 or not word.endswith("s") or word.endswith("ss"):
        return []
    stems = [word[:-1]]
    if len(word) > 4 and word.endswith("ies"):
        stems.insert(0, word[:-3] + "y")
    elif len(word) > 4 and word.endswith("es"):
        stems.append(word[:-2])
    return [(stem, add_s) for stem in stems]


def _with_d(word: str) -> Inflection:
    if len(word) < 4 or not word.endswith("ed"):
        return []
    stems = [word[:-1], *_undoubled(word[:-2])]
    if len(word) > 4 and word.endswith("ied"):
        stems.insert(0, word[:-3] + "y")
    return [(stem, _add_d) for stem in stems]


def _with_ing(word: str) -> Inflection:
    if len(word) < 6 or not word.endswith("ing"):
        return []
    return [(stem, _add_ing) for stem in (*_undoubled(word[:-3]), word[:-3] + "e")]


INFLECTIONS = (_genitive, _with_s, _with_d, _with_ing)


def _undoubled(stem: str) -> list[str]:
    """A stem, and the one before its last consonant was doubled: stopp, stop."""
    doubled = (len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] in _DOUBLED) or stem.endswith("ck")
    return [stem, stem[:-1]] if doubled else [stem]
