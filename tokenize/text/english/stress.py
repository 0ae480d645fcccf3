"""Stress of phoneme strings: where a word stands in a compound or a sentence decides how strongly it is spoken."""

from __future__ import annotations

from ..phoneme_symbols import PRIMARY, SECONDARY, STRESSED_VOWELS

VOWELS = STRESSED_VOWELS + "ᵻ"
_LONG = "AIOWYʤʧ"


def weaken(phonemes: str) -> str:
    """Primary stress becomes secondary, and secondary none."""
    return phonemes.replace(SECONDARY, "").replace(PRIMARY, SECONDARY)


def remove(phonemes: str) -> str:
    """The phonemes without stress."""
    return phonemes.replace(SECONDARY, "").replace(PRIMARY, "")


def add(phonemes: str, mark: str) -> str:
    """Phonemes without stress get one on their first vowel."""
    place = next((place for place, symbol in enumerate(phonemes) if symbol in VOWELS), None)
    stressed = PRIMARY in phonemes or SECONDARY in phonemes
    return phonemes if place is None or stressed else phonemes[:place] + mark + phonemes[place:]


def spelled(letters: list[str]) -> str:
    """Letters that are spelled: secondary stress on each, primary on the last."""
    weak = "".join(add(remove(letter), SECONDARY) for letter in letters)
    before, mark, last = weak.rpartition(SECONDARY)
    return before + PRIMARY + last if mark else weak


def compound(parts: list[str]) -> str:
    """Parts of a hyphenated word as one word: the lighter half of them loses its primary stress."""
    strong = sum(PRIMARY in part for part in parts)
    if len(parts) < 2 or strong <= (len(parts) + 1) // 2:
        return "".join(parts)
    order = sorted(range(len(parts)), key=lambda place: (PRIMARY in parts[place], _weight(parts[place]), place))
    lighter = {place for place in order[: len(order) // 2] if PRIMARY in parts[place]}
    return "".join(weaken(part) if place in lighter else part for place, part in enumerate(parts))


def _weight(phonemes: str) -> int:
    return sum(2 if symbol in _LONG else 1 for symbol in phonemes)
