"""A text as a model of speech reads it: lower-case words, digits spelled one by one, symbols left out."""

from __future__ import annotations

import re
import unicodedata

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ZERO_WIDTH_SPACE = "\u200b"
"""The one format character that parts words."""
BLANKS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
"""The combining grapheme joiner, and letters without a form."""
APOSTROPHES = "'\u2019\u02bc"


def spell_words(text: str) -> str:
    """Lower-case words with single spaces: digits spelled one by one, no punctuation but inner apostrophes.

    Combining marks stay where they stand on a letter. Characters that are never read (variation selectors, joiners,
    soft hyphens, enclosing marks) are left out and do not part a word; symbols and control characters part words.

    >>> spell_words("Call 31-4, it's  ME!")
    "call three one four it's me"
    """
    return _spell_ascii(text) if text.isascii() else _spell_all(text)


def _spell_ascii(text: str) -> str:
    """As `_spell_all`, and many times faster."""
    spelled = re.sub("[0-9]", lambda found: f" {DIGIT_WORDS[int(found.group())]} ", text.lower())
    words = (word.strip("'") for word in re.sub("[^a-z']", " ", spelled).split())
    return " ".join(word for word in words if word)


def _spell_all(text: str) -> str:
    pieces: list[str] = []
    on_letter = False
    for character in unicodedata.normalize("NFKC", text).lower():
        category = unicodedata.category(character)
        if category.startswith("M"):
            if on_letter and category != "Me" and not _is_unseen(character):
                pieces.append(character)
            continue
        if _is_unseen(character):
            continue
        on_letter = character.isalpha() and character not in APOSTROPHES
        if digits := _digits_of(character):
            pieces.append(f" {_spelled(digits)} ")
        elif on_letter:
            pieces.append(character)
        else:
            pieces.append("'" if character in APOSTROPHES else " ")
    # A mark that was parted from its letter by a joiner meets it here.
    words = (word.strip("'") for word in unicodedata.normalize("NFKC", "".join(pieces)).split())
    return " ".join(word for word in words if word)


def _digits_of(character: str) -> str:
    """The decimal digits of a numeral of any script ("1" of an Ethiopic one, "10" of a circled ten); "" of others.

    Letters that stand for numbers, as in Chinese, are letters. Fractions that NFKC leaves have no digits.
    """
    if not unicodedata.category(character).startswith("N"):
        return ""
    value = unicodedata.numeric(character, 0.5)
    return str(int(value)) if value >= 0 and value == int(value) else ""


def _spelled(digits: str) -> str:
    return " ".join(DIGIT_WORDS[int(digit)] for digit in digits)


def _is_unseen(character: str) -> bool:
    """Whether a character has no form: it joins or parts others, or chooses how one looks."""
    if unicodedata.category(character) == "Cf":
        return character != ZERO_WIDTH_SPACE
    return character in BLANKS or "VARIATION SELECTOR" in unicodedata.name(character, "")


def spell_digits(text: str) -> str:
    """The text with its digits as words, and all else as it stands: where it may be cut can still be seen.

    >>> spell_digits("Call 31-4. Now!")
    "Call three one-four. Now!"
    """
    pieces: list[str] = []
    after_digit = after_letter = False
    for character in unicodedata.normalize("NFKC", text):
        if unicodedata.category(character).startswith("M") or _is_unseen(character):
            if not after_digit:  # or the mark would stand on the last letter of the word
                pieces.append(character)
            continue
        digits, letter = _digits_of(character), character.isalpha() or character in APOSTROPHES
        digit = bool(digits)
        if (after_digit and (digit or letter)) or (after_letter and digit):
            pieces.append(" ")
        pieces.append(_spelled(digits) if digit else character)
        after_digit, after_letter = digit, letter
    return "".join(pieces)
