"""Corpora described by a table (manifest) with files, transcripts or captions, labels and splits.

    metadata.csv        id|text|normalised            LJSpeech: no header, the file is wavs/ID.wav
    any .csv or .tsv    file_name,text,label,split    with a header; the columns may have any of the usual names
    any .jsonl          {"audio": "a.wav", "text": "..."}
    a folder            one of these in it, or one in each of train/, test/, validation/, or train.tsv, test.tsv, ...;
                        or none: then folders are classes, train/cat/1.png (Hugging Face's imagefolder, audiofolder)

An unusable line is an unusable item: it is skipped and reported, "metadata.csv:17: ...".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ...configs.schema import Config, ConfigError
from ..alignment.alignment import TimedUnits
from ..alignment.alignment_file import read_intervals
from ..spec import AudioGeometry, ImageGeometry
from .corpus_items import MAX_TEXT_BYTES, FileItems, Item, find_media, spell, unique_ids
from .manifest_table import MEDIA_COLUMNS, check_table_name, table_rows
from .media import DEFAULT_LIMITS, MEDIA_EXTENSIONS, Fit, MediaError, MediaLimits

TEXT_COLUMNS = (
    *("normalised", "normalized", "normalized_text", "text", "caption", "transcript", "transcription", "sentence"),
)
LABEL_COLUMNS = ("label", "class", "speaker", "speaker_id", "speaker_name", "client_id")
SPLIT_COLUMNS = ("split", "subset")
ALIGNMENT_FIELD = "alignment"
"""Of a JSONL table: [[start, end, unit], ...] in seconds."""
SPLITS = {
    **{name: "train" for name in ("train", "training")},
    **{name: "test" for name in ("test", "testing")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev", "eval")},
}
"""Usual split names -> our names."""
FILE_FOLDERS = ("", "wavs", "clips")
"""Folders, relative to the table, in which its files are looked up."""
NAMES_IN_FOLDERS = tuple(f"metadata{extension}" for extension in (".jsonl", ".csv", ".tsv"))


class ManifestCorpus(Config):
    """Media files described by a table. Its paths are relative to the table and must stay inside its folder."""

    kind: Literal["manifest"] = "manifest"
    path: str
    """The table (.csv, .tsv, .jsonl), or a folder with one; see docs/corpora.md."""
    media: str | None = None
    """Column of the file names; null: the first of the usual names that has a value in the row."""
    text: str | None = None
    """Column of the transcripts or captions; null: the first of the usual names that has a value in the row."""
    label: str | None = None
    """Column of the labels; null: the first of the usual names that has a value in the row."""
    split: str | None = None
    """Use only the items of this split; null: all."""
    fit: Fit = "exact"
    """Images of another size. exact: an error. crop: resize to cover it, center crop. stretch: resize to it."""
    limits: MediaLimits = DEFAULT_LIMITS
    """Limits of a media file; a file beyond them is skipped and reported."""
    follow_links: bool = False
    """Follow symbolic links that lead out of the folder; otherwise they are skipped and reported."""


@dataclass(frozen=True)
class Line:
    """A line of a table."""

    where: str
    """Table, relative to the corpus folder, and line number: "metadata.csv:17"; "" if it is not from a table."""
    file: str
    """Media file, relative to the corpus folder; "" if the line is unusable."""
    text: str | None = None
    label: str | None = None
    split: str | None = None
    alignment: TimedUnits | None = None
    wrong: str = ""
    """Why the line is unusable."""


class ManifestItems(FileItems):
    """Corpus described by a table, see ManifestCorpus."""

    looked_for = "lines of a table, or media files in folders"

    def __init__(self, config: ManifestCorpus):
        path = Path(config.path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        super().__init__(path if path.is_dir() else path.parent, config)
        self.config = config
        lines = self._find_lines(path)
        if config.split is not None:
            wanted = SPLITS.get(config.split.lower(), config.split)
            known = {line.split for line in lines if line.split is not None}
            if wanted not in known:
                names = ", ".join(sorted(known)) or "none"
                raise ConfigError(f"{path}: no item of split '{config.split}'; the splits are: {names}")
            lines = [line for line in lines if line.split == wanted or (line.wrong and line.split is None)]
        self.lines = _without_doubles(lines)
        self.names = unique_ids(line.file or line.where for line in self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def ids(self) -> Sequence[str]:
        return self.names

    def splits(self) -> Sequence[str | None] | None:
        found = [line.split for line in self.lines]
        return found if any(found) else None

    def item(self, number: int) -> Item:
        line = self.lines[number]
        if line.wrong:
            raise MediaError(f"{self.folder / line.where}: {line.wrong}")
        return Item(self.names[number], line.label, line.text)

    def alignment(self, number: int) -> TimedUnits | None:
        line = self.lines[number]
        return line.alignment if line.alignment is not None or line.wrong else super().alignment(number)

    def path(self, number: int) -> Path:
        return self.folder / self.lines[number].file

    def media(self, number: int, geometry: AudioGeometry | ImageGeometry) -> Tensor:
        line = self.lines[number]
        if line.wrong:
            raise MediaError(f"{self.folder / line.where}: {line.wrong}")
        try:
            return super().media(number, geometry)
        except MediaError as error:
            raise MediaError(f"{self.folder / line.where}: {error}" if line.where else str(error)) from None

    def _find_lines(self, path: Path) -> list[Line]:
        if not path.is_dir():
            return list(self._read_table(path, None))
        table = manifest_in(path)
        if table is not None:
            return list(self._read_table(table, None))
        tables = sorted(_split_tables(path))
        if tables:
            return [line for table, split in tables for line in self._read_table(table, split)]
        return [self._of_class(name) for name in find_media(path, self.config.follow_links, self.notes)]

    def _of_class(self, name: str) -> Line:
        """Line for a file whose folders give its split and label."""
        *folders, _ = name.split("/")
        split = SPLITS.get(folders[0].lower()) if folders else None
        inner = folders[1:] if split else folders
        return Line("", name, label=spell(inner[-1]) if inner else None, split=split)

    def _read_table(self, path: Path, split: str | None) -> Iterator[Line]:
        """Lines of one table; `split` is the default for lines without one.

        Raises:
            ConfigError: it has no column of file names, or lacks a requested column.
        """
        check_table_name(path)
        self.check_link(path)
        for number, row in table_rows(path, self.config.media):
            where = f"{os.path.relpath(path, self.folder).replace(os.sep, '/')}:{number}"
            if isinstance(row, str):
                yield Line(where, "", split=split, wrong=row)
                continue
            try:
                yield self._line(path, where, row, split)
            except ValueError as error:
                yield Line(where, "", split=split, wrong=str(error))

    def _line(self, table: Path, where: str, row: dict[str, Any], split: str | None) -> Line:
        """Build a line from its fields; ValueError describes what is wrong with it."""
        config = self.config
        named = row.get(_column(row, MEDIA_COLUMNS, config.media, "media") or "")
        if isinstance(named, dict):  # feature columns of Hugging Face
            named = named.get("path")
        if not isinstance(named, str) or not named.strip():
            expected = config.media or " ".join(MEDIA_COLUMNS)
            raise ValueError(f"names no media file (looked for {expected})")
        text = row.get(_column(row, TEXT_COLUMNS, config.text, "text") or "")
        if config.text is None and not text:  # LJSpeech has empty normalized texts in some lines
            text = row.get("text")
        if text is not None and not isinstance(text, str):
            raise ValueError("its text is no string")
        label = row.get(_column(row, LABEL_COLUMNS, config.label, "label") or "")
        if isinstance(label, bool) or not isinstance(label, str | int | None):
            raise ValueError("its label is neither a string nor a whole number")
        named_split = row.get(_column(row, SPLIT_COLUMNS, None, "split") or "")
        if isinstance(named_split, str) and named_split.strip():
            split = SPLITS.get(named_split.strip().lower(), named_split.strip())
        text, label = (text or "").strip() or None, "" if label is None else str(label).strip()
        for value in (named, text or "", label, split or ""):
            _check_text(value)
        given = row.get(ALIGNMENT_FIELD)
        alignment = read_intervals(given) if isinstance(given, list) else None
        return Line(where, self._locate(table.parent, named.strip()), text, label or None, split, alignment)

    def _locate(self, base: Path, name: str) -> str:
        """Resolve a file named by a table in the folder `base` to a path relative to the corpus folder."""
        folder = os.path.normpath(os.path.abspath(self.folder))
        choices = []
        for inner in FILE_FOLDERS:
            found = os.path.normpath(os.path.join(os.path.abspath(base), inner, name))
            if found != folder and not found.startswith(folder.rstrip(os.sep) + os.sep):
                raise ValueError(f"'{name}' lies outside the folder of the manifest; move or copy it into that folder")
            endings = ("",) if Path(name).suffix.lower() in MEDIA_EXTENSIONS else ("", *MEDIA_EXTENSIONS)
            for ending in endings:
                if ending or Path(name).suffix.lower() in MEDIA_EXTENSIONS:
                    choices.append(found + ending)
        present = next((choice for choice in choices if os.path.exists(choice)), None)
        if present is None and len(choices) > len(FILE_FOLDERS):
            raise ValueError(f"no media file '{name}' beside it or in {' or '.join(filter(None, FILE_FOLDERS))}")
        return os.path.relpath(present or choices[0], folder).replace(os.sep, "/")


def manifest_in(folder: Path) -> Path | None:
    """The table in a folder, None if there is none; ConfigError if there are several."""
    found = [folder / name for name in NAMES_IN_FOLDERS if (folder / name).is_file()]
    if len(found) > 1:
        raise ConfigError(f"{folder}: has {' and '.join(path.name for path in found)}; choose one")
    return found[0] if found else None


def _split_tables(folder: Path) -> Iterator[tuple[Path, str]]:
    """Tables of the splits in a folder: train/metadata.csv, or train.csv."""
    for entry in folder.iterdir():
        split = SPLITS.get(entry.stem.lower() if entry.is_file() else entry.name.lower())
        if split and entry.is_dir() and (table := manifest_in(entry)) is not None:
            yield table, split
        elif split and entry.is_file() and entry.suffix.lower() in (".csv", ".tsv", ".jsonl"):
            yield entry, split


def _column(row: dict[str, Any], usual: Sequence[str], asked: str | None, field: str) -> str | None:
    """The first usual column with a value in a row, or the column `asked` if it is given."""
    if asked is not None:
        if asked not in row:
            raise ValueError(f"has no field '{asked}', which corpus.{field} asks for")
        return asked
    return next((name for name in usual if row.get(name) not in (None, "")), None)


def _check_text(value: str) -> None:
    """Raise ValueError if a value cannot be stored as text."""
    if "\0" in value:
        raise ValueError("holds a zero byte")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8 text") from None
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"holds more than {MAX_TEXT_BYTES} bytes of text")


def _without_doubles(lines: Sequence[Line]) -> list[Line]:
    """Reject lines that repeat a file: the copies could fall into different splits."""
    first: dict[str, str] = {}
    found = []
    for line in lines:
        if line.file and line.file in first and line.where:
            line = Line(
                line.where, "", split=line.split, wrong=f"'{line.file}' occurs twice, first in {first[line.file]}"
            )
        elif line.file:
            first[line.file] = line.where
        found.append(line)
    return found
