"""Text normalization for speech models: lower-case words, digits spelled one by one, symbols removed."""

from __future__ import annotations

import re
import unicodedata

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ZERO_WIDTH_SPACE = "\u200b"
"""The only format character that separates words."""
BLANKS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
"""The combining grapheme joiner, and letters without a glyph."""
APOSTROPHES = "'\u2019\u02bc"


def spell_words(text: str) -> str:
    """Lower-case words with single spaces: digits spelled one by one, no punctuation except inner apostrophes.

    Combining marks are kept on letters. Unspoken characters (variation selectors, joiners, soft hyphens, enclosing
    marks) are removed without splitting the word; symbols and control characters separate words.

    >>> spell_words("Call 31-4, it's  ME!")
    "call three one four it's me"
    """
    return _spell_ascii(text) if text.isascii() else _spell_all(text)


def _spell_ascii(text: str) -> str:
    """Fast path of `_spell_all` for ASCII."""
    spelled = re.sub("[0-9]", lambda found: f" {DIGIT_WORDS[int(found.group())]} ", text.lower())
    words = (word.strip("'") for word in re.sub("[^a-z']", " ", spelled).split())
    return " ".join(word for word in words if word)


def _spell_all(text: str) -> str:
    parts: list[str] = []
    on_letter = False
    for character in unicodedata.normalize("NFKC", text).lower():
        category = unicodedata.category(character)
        if category.startswith("M"):
            if on_letter and category != "Me" and not _is_unseen(character):
                parts.append(character)
            continue
        if _is_unseen(character):
            continue
        on_letter = character.isalpha() and character not in APOSTROPHES
        if digits := _digits_of(character):
            parts.append(f" {_spelled(digits)} ")
        elif on_letter:
            parts.append(character)
        else:
            parts.append("'" if character in APOSTROPHES else " ")
    # Compose marks that were separated from their letter by a joiner.
    words = (word.strip("'") for word in unicodedata.normalize("NFKC", "".join(parts)).split())
    return " ".join(word for word in words if word)


def _digits_of(character: str) -> str:
    """The decimal digits of a numeral in any script (Ethiopic one: "1", circled ten: "10"); "" for other characters.

    Letters used as numbers, as in Chinese, count as letters. Fractions that NFKC keeps have no digits.
    """
    if not unicodedata.category(character).startswith("N"):
        return ""
    value = unicodedata.numeric(character, 0.5)
    return str(int(value)) if value >= 0 and value == int(value) else ""


def _spelled(digits: str) -> str:
    return " ".join(DIGIT_WORDS[int(digit)] for digit in digits)


def _is_unseen(character: str) -> bool:
    """Whether a character has no glyph: it joins or separates others, or selects a variant."""
    if unicodedata.category(character) == "Cf":
        return character != ZERO_WIDTH_SPACE
    return character in BLANKS or "VARIATION SELECTOR" in unicodedata.name(character, "")


def spell_digits(text: str) -> str:
    """Spell digits as words and keep everything else, so that the text can still be split at punctuation.

    >>> spell_digits("Call 31-4. Now!")
    "Call three one-four. Now!"
    """
    parts: list[str] = []
    after_digit = after_letter = False
    for character in unicodedata.normalize("NFKC", text):
        if unicodedata.category(character).startswith("M") or _is_unseen(character):
            if not after_digit:  # otherwise it would combine with the word's last letter
                parts.append(character)
            continue
        digits, letter = _digits_of(character), character.isalpha() or character in APOSTROPHES
        digit = bool(digits)
        if (after_digit and (digit or letter)) or (after_letter and digit):
            parts.append(" ")
        parts.append(_spelled(digits) if digit else character)
        after_digit, after_letter = digit, letter
    return "".join(parts)
