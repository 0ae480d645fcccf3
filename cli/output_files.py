"""Output files of generation: folders, notes about older files, and warnings as single lines."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ..configs.printable import say


def prepare_outputs(targets: list[Path]) -> list[Path]:
    """Create the folders of output files; returns the media already present in a folder of numbered files.

    Raises:
        OSError: a file cannot be written there, see `prepare_file`.
    """
    from ..configs.output_place import prepare_file
    from ..generate.result import SUFFIXES

    prepare_file(targets[0])  # the others are in the same folder
    if len(targets) == 1 and not re.fullmatch(r"0+", targets[0].stem):
        return []
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    return sorted(path for path in targets[0].parent.iterdir() if path.suffix.lower() in known)


def say_older(before: list[Path], written: list[Path]) -> None:
    """Print which media in the folder are from earlier runs, and how many were replaced."""
    now = {path.name for path in written}
    older = [path.name for path in before if path.name not in now]
    replaced = len(before) - len(older)
    if older:
        names = ", ".join(older if len(older) <= 5 else [*older[:4], f"... {older[-1]}"])
        also = f"; {replaced} others were replaced" if replaced else ""
        count = f"{len(older)} older file{'s' if len(older) > 1 else ''}"
        say(f"tessera: {before[0].parent} also holds {count}, not from this run: {names}{also}")
    elif replaced:
        say(f"replaced {replaced} older file{'s' if replaced > 1 else ''}")


@contextmanager
def warnings_in_one_line() -> Iterator[list[str]]:
    """Print each GenerationWarning as one line on stderr, without deduplication; yields the list of printed ones."""
    from ..generate.result import GenerationWarning

    printed: list[str] = []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message, category, *rest, **named) -> None:
            if not issubclass(category, GenerationWarning):
                return shown(message, category, *rest, **named)
            printed.append(str(message))
            with tqdm.external_write_mode(file=sys.stderr):
                say(f"tessera: {' '.join(str(message).split())}")

        warnings.simplefilter("always", GenerationWarning)
        warnings.showwarning = show
        yield printed
