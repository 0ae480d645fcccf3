"""Text of users and files in messages: shown as it is where it is harmless, escaped where a terminal would obey it."""

from __future__ import annotations

import sys

MAX_CHARACTERS = 2000


def printable(text: object, max_characters: int = MAX_CHARACTERS) -> str:
    """Text without characters that act instead of being shown.

    Args:
        text: a name, a path, a value or an error; `str` is taken of it.
        max_characters: longer text loses its middle; the number of characters left out stands there.
    Returns:
        The text with control characters, escape sequences, line ends, marks that change the direction of writing and
        bytes that were not UTF-8 (surrogates) written as Python escapes, such as "\\x1b". Letters of all scripts stay.

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
    """The same for a message: runs of white space become one space, then as `printable`."""
    return printable(" ".join(str(text).split()), max_characters)


def say(text: object) -> None:
    """Print a line on stderr, as `printable`: what it names may be another's text."""
    print(printable(text), file=sys.stderr)
