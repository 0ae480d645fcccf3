"""Rows of a manifest table: CSV, TSV, LJSpeech's lines without a header, or JSONL, within limits."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ...configs.schema import ConfigError
from .media import open_regular

TABLES = (".csv", ".tsv", ".txt", ".jsonl")
MEDIA_COLUMNS = (
    *("file_name", "audio", "image", "audio_filepath", "audio_path", "image_path", "audio_file", "image_file"),
    *("file", "path", "filename", "wav", "id"),
)
"""Usual names of the column of file names."""
LJSPEECH_COLUMNS = ("id", "text", "normalised")
DELIMITERS = (",", "\t", "|", ";")
MAX_LINE_BYTES = 1 << 20
MAX_LINES = 10_000_000


def check_table_name(path: Path) -> None:
    """Raise ConfigError if a file is not a table, by its extension."""
    if path.suffix.lower() not in TABLES:
        raise ConfigError(f"{path}: a manifest is one of {' '.join(TABLES)}, or a folder")


def table_rows(path: Path, media: str | None) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Rows of a table: line number, and the fields or an error message.

    Args:
        media: column of the file names; None: the first with a usual name.
    Raises:
        ConfigError: too many lines, or a CSV file whose first line is neither a header with that column nor in LJSpeech
            format.
    """
    return _json_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path, media)


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Lines of a JSONL file: line number, and the fields or an error message."""
    with open_regular(path) as file:
        for number, line in enumerate(_lines(file, path), start=1):
            if len(line) > MAX_LINE_BYTES:
                yield number, f"a line of more than {MAX_LINE_BYTES} bytes"
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(text) if text.strip() else None
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON ({' '.join(str(error).split())[:100]})"
                continue
            if isinstance(row, dict):
                yield number, row
            elif text.strip():
                yield number, "not a JSON object"


def _lines(file: Any, path: Path) -> Iterator[bytes]:
    """Lines without their line ends; longer lines are truncated to just above the limit."""
    count = 0
    while line := file.readline(MAX_LINE_BYTES + 2):
        count += 1
        if count > MAX_LINES:
            raise ConfigError(f"{path}: more than {MAX_LINES} lines")
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (more := file.readline(MAX_LINE_BYTES)) and not more.endswith(b"\n"):
                pass
        yield line.rstrip(b"\r\n") if len(line) <= MAX_LINE_BYTES + 1 else line


def _csv_rows(path: Path, media: str | None) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Lines of a table: line number, and the fields or an error message.

    Raises:
        ConfigError: the first line is neither a header with a column of file names nor a line in LJSpeech format.
    """
    with open_regular(path) as file:
        texts = (line.decode("utf-8", "surrogateescape") for line in _lines(file, path))
        first = next(texts, "").removeprefix("\ufeff")
        names, delimiter = _header(first, path, media)
        start = 2
        if names is None:  # the first line is data
            names, texts, start = list(LJSPEECH_COLUMNS), chain([first], texts), 1
        quoting = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
        reader = csv.reader((text + "\n" for text in texts), delimiter=delimiter, quoting=quoting)
        while True:
            number = start + reader.line_num
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, f"not a valid line of a table ({error})"
                continue
            if not row:
                continue
            few = 2 if names == list(LJSPEECH_COLUMNS) else len(names)
            if not few <= len(row) <= len(names):
                yield number, f"has {len(row)} fields, {len(names)} are expected ({delimiter.join(names)})"
                continue
            yield number, {name: value for name, value in zip(names, row, strict=False)}


def _header(first: str, path: Path, media: str | None) -> tuple[list[str] | None, str]:
    """Column names (None: LJSpeech format without a header) and the delimiter."""
    wanted = {media} if media is not None else set(MEDIA_COLUMNS)
    for delimiter in DELIMITERS:
        names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if media is None:
            names = [name.lower() for name in names]
        if wanted.intersection(names):
            return names, delimiter
    if "|" in first and media is None:
        return None, "|"
    expected = f"'{media}'" if media else f"one of {' '.join(MEDIA_COLUMNS)}"
    raise ConfigError(
        f"{path}:1: no column names the media files (expected {expected}; found {first[:200]}); write a header, or "
        "name the column as corpus.media"
    )
