"""Safe display of untrusted text in messages: control characters are escaped so that terminals do not obey them."""

from __future__ import annotations

import sys

MAX_CHARACTERS = 2000


def printable(text: object, max_characters: int = MAX_CHARACTERS) -> str:
    """Escape all non-printable characters.

    Args:
        text: a name, a path, a value or an error, converted by `str`.
        max_characters: the middle of longer text is replaced by the number of characters left out.
    Returns:
        The text with control characters, escape sequences, line ends, marks that change the text direction and bytes
        that are not UTF-8 (surrogates) as Python escapes like "\\x1b". Letters of all scripts are kept.

    printable("a\\x1b[31mb") == "a\\\\x1b[31mb".
    """
    text = str(text)
    if len(text) > max_characters:
        head, tail = max_characters * 2 // 3, max_characters // 4
        text = f"{text[:head]} ... ({len(text) - head - tail} characters) ... {text[-tail:]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: object, max_characters: int = MAX_CHARACTERS) -> str:
    """`printable` with every run of white space replaced by one space."""
    return printable(" ".join(str(text).split()), max_characters)


def say(text: object) -> None:
    """Print a line on stderr, escaped by `printable` because it can contain untrusted text."""
    print(printable(text), file=sys.stderr)
