"""Pronunciations of words for pocketsphinx, from the aligned phonemes of recordings."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.tokenize.text.units import WORD_BOUNDARY, is_silent
from tessera.train.align.unit_graph import STRESS_MARKS

PHONES = {
    "A": "EY", "I": "AY", "O": "OW", "W": "AW", "Y": "OY", "b": "B", "d": "D", "f": "F", "h": "HH", "i": "IY", "j": "Y",
    "k": "K", "l": "L", "m": "M", "n": "N", "p": "P", "s": "S", "t": "T", "u": "UW", "v": "V", "w": "W", "z": "Z",
    "æ": "AE", "ð": "DH", "ŋ": "NG", "ɑ": "AA", "ɔ": "AO", "ə": "AH", "ɛ": "EH", "ɜ": "ER", "ɡ": "G", "ɪ": "IH",
    "ɹ": "R", "ɾ": "D", "T": "D", "ʃ": "SH", "ʊ": "UH", "ʌ": "AH", "ʒ": "ZH", "ʤ": "JH", "ʧ": "CH", "θ": "TH",
    "ᵊ": "AH", "ᵻ": "IH", "ɐ": "AH",
}  # fmt: skip
"""Phones of pocketsphinx by phoneme in misaki's symbols."""


def words_of(units: Sequence[str]) -> list[list[str]]:
    """The phonemes of each word, without stress marks."""
    words: list[list[str]] = [[]]
    for unit in units:
        if unit == WORD_BOUNDARY:
            words.append([])
        elif not is_silent(unit):
            words[-1].append(unit.lstrip(STRESS_MARKS))
    return [word for word in words if word]


def phones_of(word: Sequence[str]) -> str:
    """The phones of a word's phonemes; "ɜɹ" is one phone."""
    phones = [PHONES[unit] for unit in word]
    return " ".join(
        phone for place, phone in enumerate(phones) if not (phone == "R" and phones[place - 1 : place] == ["ER"])
    )


def pronunciations(words: Sequence[str], units: Sequence[str]) -> dict[str, str]:
    """Phones of the words of a sentence by its units; empty where units do not separate as many words."""
    found = words_of(units)
    return dict(zip(words, map(phones_of, found), strict=True)) if len(found) == len(words) else {}
