"""The phonemes of English, and phoneme strings split into units.

The symbols are those of misaki and Kokoro-82M (Apache-2.0) for American English: one character a phoneme, so that a
string of them needs no separators; the stress mark stands in front of its vowel and becomes a part of the unit.

    "həlˈO, wˈɜɹld!"     ->     h ə l ˈO , | w ˈɜ ɹ l d !

IPA that others write for the same sounds (həlˈoʊ, ˈtʃiːz) is read as well.
"""

from __future__ import annotations

import re

from .units import WORD_BOUNDARY

MARKS = ",.?!;:—…"
PRIMARY, SECONDARY = "ˈ", "ˌ"
STRESSED_VOWELS = "AIOWYiuæɑɔəɛɜɪʊʌ"
"""Each also without stress. A I O W Y are the diphthongs of day, my, go, now, boy."""
UNSTRESSED_VOWELS = "ɐᵊᵻ"
CONSONANTS = "bdfhjklmnpstvwzðŋɡɹʃʒʤʧθT"
"""T is the flapped t of "city"."""
ENGLISH_UNITS = (
    WORD_BOUNDARY,
    *MARKS,
    *CONSONANTS,
    *(stress + vowel for vowel in STRESSED_VOWELS for stress in ("", PRIMARY, SECONDARY)),
    *UNSTRESSED_VOWELS,
)

_AS_MISAKI = {
    **{"eɪ": "A", "aɪ": "I", "oʊ": "O", "əʊ": "O", "aʊ": "W", "ɔɪ": "Y", "d͡ʒ": "ʤ", "dʒ": "ʤ", "t͡ʃ": "ʧ", "tʃ": "ʧ"},
    **{"ɝ": "ɜɹ", "ɚ": "əɹ", "e": "A", "o": "O", "Q": "O", "a": "ɑ", "ɒ": "ɑ", "ɐ̃": "ɑ", "g": "ɡ", "r": "ɹ"},
    **{"ɾ": "T", "ʔ": "t", "x": "k", "ç": "k", "ɬ": "l", "ɫ": "l", "y": "i", "ː": "", "ˑ": "", "'": PRIMARY},
    **{"–": "—", "-": "", ".": ".", "\u0361": "", "\u0329": "", "\u0303": "", "\u032f": "", "\u200d": ""},
}
_OTHER_IPA = re.compile("|".join(map(re.escape, sorted(_AS_MISAKI, key=len, reverse=True))))
_UNSTRESSABLE = {"ɐ": "ʌ", "ᵊ": "ə", "ᵻ": "ɪ"}
_QUIET = '"“”„«»‘’()[]{}|'


def phoneme_units(phonemes: str, unknown: list[str] | None = None) -> list[str]:
    """Split a phoneme string into units.

    White space is the word boundary; quotation marks and parentheses separate words as well. A stress mark before a
    consonant moves to the next vowel of its word.

    Args:
        unknown: receives the characters that are no phonemes of English.
    Raises:
        ValueError: there is one, and `unknown` is None.
    """
    units: list[str] = []
    stress = ""
    others = [] if unknown is None else unknown
    for symbol in _OTHER_IPA.sub(lambda found: _AS_MISAKI[found.group()], phonemes):
        if symbol in (PRIMARY, SECONDARY):
            stress = symbol
        elif symbol in STRESSED_VOWELS or symbol in UNSTRESSED_VOWELS:
            units.append(stress + _UNSTRESSABLE.get(symbol, symbol) if stress else symbol)
            stress = ""
        elif symbol in CONSONANTS:
            units.append(symbol)
        elif symbol in MARKS:
            units.append(symbol)
        elif symbol.isspace() or symbol in _QUIET:
            units.append(WORD_BOUNDARY)
            stress = ""
        else:
            others.append(symbol)
    if others and unknown is None:
        raise ValueError(
            f"[[{phonemes[:40]}]]: {others[0]!r} (U+{ord(others[0]):04X}) is no phoneme of English; phonemes are "
            f"{STRESSED_VOWELS}{UNSTRESSED_VOWELS}{CONSONANTS}, with {PRIMARY} or {SECONDARY} before a stressed vowel"
        )
    return units
