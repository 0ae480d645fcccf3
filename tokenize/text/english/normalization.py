"""English text as spoken words: every number, abbreviation and symbol in words, and the marks that make pauses.

    "Dr. Lee paid $5.50 on 3/4/2021."     ->     doctor Lee paid five dollars and fifty cents on March fourth ...

The text is read once from left to right. At each place the first rule that applies says what its stretch of text is
spoken as, so each spoken word belongs to a known stretch of the text as written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from . import number_rules, word_rules
from .pronunciation import plain_letters
from .word_rules import WORD

_EXPLICIT = re.compile(r"\[\[([^\[\]\n]{0,1000})\]\]")
_WORD = re.compile(rf"{WORD}(?:-{WORD}){{0,7}}")
_APOSTROPHE_WORD = re.compile(r"['’](?:em|tis|twas|til|cause|bout|round|cuz)\b", re.IGNORECASE)
_CHUNK = re.compile(r"\S{1,80}")
_SPACE = re.compile(r"\s+")
_PARAGRAPH = re.compile(r"\s*\n\s*\n\s*")
_DIGITS = frozenset("0123456789")
_NUMBER_RULES = [*word_rules.ADDRESS_RULES, *number_rules.NUMBER_RULES]
_WORD_RULES = [*word_rules.ADDRESS_RULES, *number_rules.DATE_RULES, *word_rules.WORD_RULES]
_SIGN_RULES = [*number_rules.SIGN_RULES, *word_rules.SIGN_RULES]


@dataclass(frozen=True)
class Piece:
    """A stretch of a text and what it is spoken as."""

    start: int
    end: int
    spoken: tuple[str, ...]
    """Words, marks, and explicit phonemes in double square brackets."""
    unread: bool = False
    """Whether it could not be read."""


def clean(text: str) -> str:
    """The text in composed form, without characters that have no glyph, and with plain letters and digits for those of
    other widths and styles."""
    if text.isascii() and text.isprintable():
        return text
    kept = (character for character in unicodedata.normalize("NFC", text) if not _is_unseen(character))
    return "".join(_plain(character) for character in kept)


def pieces_of(text: str, lexicon: Mapping[str, str] | None = None) -> list[Piece]:
    """Read a cleaned text of any length; what is not covered by the pieces is white space.

    Args:
        lexicon: phonemes of words that no rule applies to; a word may have digits and signs (3M, C++).
    """
    pieces: list[Piece] = []
    place = 0
    while place < len(text):
        if space := _SPACE.match(text, place):
            if _PARAGRAPH.fullmatch(space[0]) and place:
                pieces.append(Piece(place, place, (".",)))
            place = space.end()
            continue
        piece = (_listed(text, place, lexicon) if lexicon else None) or _piece(text, place)
        pieces.append(piece)
        place = piece.end
    return pieces


def _listed(text: str, place: int, lexicon: Mapping[str, str]) -> Piece | None:
    """The longest word of a lexicon that begins at a place and is no part of a longer word."""
    found = _CHUNK.match(text, place)
    if found is None or (place and text[place - 1].isalnum()):
        return None
    for end in range(found.end(), place, -1):
        if end == len(text) or not (text[end].isalnum() and text[end - 1].isalnum()):
            word = text[place:end].replace("’", "'")
            phonemes = lexicon.get(word) or lexicon.get(word.lower())
            if phonemes:
                return Piece(place, end, tuple(f"[[{word}]]" for word in phonemes.split()))
    return None


def _piece(text: str, place: int) -> Piece:
    """What stands at a place of a text that is not white space."""
    first = text[place]
    if first == "[" and (found := _EXPLICIT.match(text, place)):
        return Piece(place, found.end(), tuple(f"[[{word}]]" for word in found[1].split()))
    for pattern, speak in _NUMBER_RULES if first in _DIGITS else _WORD_RULES if first.isalpha() else _SIGN_RULES:
        if (found := pattern.match(text, place)) and (spoken := speak(found)) is not None:
            return Piece(place, found.end(), tuple(spoken.split()))
    if first.isalpha() and (found := _WORD.match(text, place)):
        if plain_letters(found[0]):
            return Piece(place, found.end(), (found[0].replace("’", "'"),))
        return Piece(place, found.end(), (), unread=True)
    if found := _APOSTROPHE_WORD.match(text, place):
        return Piece(place, found.end(), (found[0].replace("’", "'"),))
    return Piece(place, place + 1, (), unread=True)


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Mn", "Me", "Cc", "Cn", "Co") and not character.isspace()


def _plain(character: str) -> str:
    """Full width and styled letters and digits, ligatures and digits of other scripts in ASCII."""
    if character.isascii():
        return character
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    plain = unicodedata.normalize("NFKC", character)
    wide = "\uff00" <= character <= "\uffef"
    return plain if plain.isascii() and (wide or (plain.isalnum() and category[0] in "LS")) else character
