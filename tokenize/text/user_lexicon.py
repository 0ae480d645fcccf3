"""A user's lexicon: how words are spoken that the text front end does not know, or reads in another way.

# a word, a tab, its phonemes
Tessera	tˈɛsəɹə
GIF	ʤˈɪf
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .units import is_silent

LEXICON_FILE = "lexicon.tsv"
MAX_LEXICON_BYTES = 16 << 20


def read_lexicon(path: str | Path, split: Callable[[str], list[str]]) -> dict[str, str]:
    """Read a lexicon file. Raises FileNotFoundError, or ValueError as `parse_lexicon`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a lexicon has a word, a tab and its phonemes on each line")
    if path.stat().st_size > MAX_LEXICON_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, the limit of a lexicon is {MAX_LEXICON_BYTES}")
    return parse_lexicon(path.read_bytes(), str(path), split)


def parse_lexicon(content: bytes, where: str, split: Callable[[str], list[str]]) -> dict[str, str]:
    """Words and phonemes of a lexicon file: UTF-8 lines "word<TAB>phonemes", empty lines and # comments.

    Args:
        split: phonemes -> units; raises ValueError for phonemes that the language does not have.
    Raises:
        ValueError: names the file and the line.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 (byte {error.start}); save it in UTF-8") from None
    words: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        word, *phonemes = (part.strip() for part in line.split("\t"))
        if len(phonemes) != 1 or not phonemes[0] or len(word.split()) != 1:
            raise ValueError(f"{where}:{number}: expected a word, a tab and its phonemes, found {line[:60]!r}")
        try:
            units = split(phonemes[0])
        except ValueError as error:
            raise ValueError(f"{where}:{number}: {error}") from None
        if all(is_silent(unit) for unit in units):
            raise ValueError(f"{where}:{number}: {phonemes[0][:60]!r} has no sound")
        words[word.replace("’", "'")] = " ".join(phonemes[0].split())
    return words


def lexicon_bytes(words: Mapping[str, str]) -> bytes:
    """The content of a lexicon file."""
    head = "# a word, a tab, its phonemes\n"
    return (head + "".join(f"{word}\t{phonemes}\n" for word, phonemes in words.items())).encode()
