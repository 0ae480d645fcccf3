"""Validation of names that become files and folders: names from configs, indexes and codes files must be safe."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from .printable import printable

MAX_BYTES = 200
"""Maximum length of a name; file systems allow 255, and temporary names are longer than the final ones."""
_EMPTY = "is empty, which names nothing; give a path or a name"
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def check_file_name(name: str, where: str) -> str:
    """Return the name if it is a single path component; otherwise raise ValueError, with the prefix `where`.

    Rejected are "", ".", "..", slashes and backslashes, control characters, bytes that are not UTF-8, and long names.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable() or _size(name) > MAX_BYTES:
        raise ValueError(f"{where}: '{printable(name, 80)}' is not a file name in this folder")
    return name


def _not_a_device(name: str) -> str:
    if name.split(".")[0].lower() in _DEVICES:
        raise ValueError(f"'{name}' is a device on some systems; choose another name")
    return name


FolderName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?$", max_length=100),
    AfterValidator(_not_a_device),
]
"""Folder name in a config, valid on any system: letters, digits, dot, dash and underscore, no dot at either end."""


def _is_shown(name: str) -> str:
    if not name.isprintable() or len(name) > MAX_BYTES:
        raise ValueError(
            f"'{printable(name, 80)}' is not a printable name; use at most {MAX_BYTES} printable characters"
        )
    return name


ShownName = Annotated[str, AfterValidator(_is_shown)]
"""Name that messages show verbatim, for example a tokenizer's."""


def _is_given(path: str) -> str:
    if not path:
        raise ValueError(_EMPTY)
    return path


GivenPath = Annotated[str, AfterValidator(_is_given)]
"""Path or name in a config; "" is refused, because it would stand for the current folder."""


def check_path(path: object, what: str) -> Path:
    """A path that was given in Python. ValueError, which begins with `what`: it is none, or empty."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{what} must be a path or a name, found {printable(repr(path), 80)}")
    if not os.fspath(path):
        raise ValueError(f"{what} {_EMPTY}")
    return Path(path)


def output_stems(names: Iterable[str]) -> list[str]:
    """Unique file names without extension for arbitrary item names.

    Folders and the extension are removed, characters other than letters, digits, space and -_+. become _, and a second
    x becomes x-1. Names that differ only in case count as equal, as on some file systems.
    """
    taken: set[str] = set()
    copies: dict[str, int] = {}
    stems = []
    for name in names:
        stem = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        stem = stem.rpartition(".")[0] or stem
        stem = "".join(letter if letter.isalnum() or letter in "-_+. " else "_" for letter in stem[:MAX_BYTES])
        while _size(stem) > MAX_BYTES - 60:
            stem = stem[: max(1, len(stem) - max(1, (_size(stem) - MAX_BYTES + 60) // 4))]
        stem = stem.strip(". ") or "item"
        if stem.split(".")[0].lower() in _DEVICES:
            stem = f"_{stem}"
        unique, key = stem, stem.lower()
        while unique.lower() in taken:
            copies[key] = copies.get(key, 0) + 1
            unique = f"{stem}-{copies[key]}"
        taken.add(unique.lower())
        stems.append(unique)
    return stems


def _size(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))
