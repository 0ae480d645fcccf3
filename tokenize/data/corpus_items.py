"""Base classes of corpora, and helpers for corpora of files: folder walks, links, sidecar files, names."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..alignment.alignment import TimedUnits
from ..alignment.alignment_file import EXTENSIONS, MAX_FILE_BYTES, read_alignment
from ..spec import AudioGeometry, ImageGeometry
from .media import MEDIA_EXTENSIONS, Fit, MediaError, MediaLimits, Notes, open_regular, read_audio, read_image

MAX_TEXT_BYTES = 64 << 10
SIDECARS = (".txt", ".label", *(extension.lower() for extension in EXTENSIONS))
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
OUTSIDE_LINK = "a link that leads out of the corpus folder; to read it, set follow_links: true in the corpus"


@dataclass(frozen=True)
class Item:
    """Description of an item, available without decoding it."""

    id: str
    """Path relative to the corpus folder, or index in its arrays. Always valid Unicode."""
    label: str | None
    text: str | None


class Corpus:
    """Base class of corpora; created by `corpus.open_corpus`."""

    looked_for: str
    """Expected content, for the error message when nothing is found."""

    def __init__(self):
        self.notes = Notes()
        """Notes for the user, printed after all items are read."""

    def __len__(self) -> int:
        raise NotImplementedError

    def ids(self) -> Sequence[str]:
        """Ids of all items in order, without reading the items."""
        raise NotImplementedError

    def splits(self) -> Sequence[str | None] | None:
        """The split of each item ("train", "test", ...) defined by the corpus; None if it defines no splits."""
        return None

    def item(self, number: int) -> Item:
        """Label and transcript of an item. Raises MediaError if a sidecar file or line is unusable."""
        raise NotImplementedError

    def alignment(self, number: int) -> TimedUnits | None:
        """The units of an item with their times in seconds, None if none are given. Raises MediaError if unusable."""
        return None

    def media(self, number: int, geometry: AudioGeometry | ImageGeometry) -> Tensor:
        """Samples [C, N] at the geometry's sample rate, or an image [C, height, width].

        Raises:
            MediaError: this item is unusable. ValueError: the whole corpus is.
        """
        raise NotImplementedError


class FilesConfig(Protocol):
    """The part of the config that FileItems uses."""

    @property
    def fit(self) -> Fit: ...
    @property
    def limits(self) -> MediaLimits: ...
    @property
    def follow_links(self) -> bool: ...


class FileItems(Corpus):
    """Base class of corpora whose items are files in a folder; subclasses define `path`."""

    def __init__(self, folder: Path, config: FilesConfig):
        super().__init__()
        self.folder, self.files_config = folder, config
        self.root = os.path.realpath(folder)

    def path(self, number: int) -> Path:
        """Media file of an item."""
        raise NotImplementedError

    def media(self, number: int, geometry: AudioGeometry | ImageGeometry) -> Tensor:
        """See Corpus.media."""
        path, config = self.path(number), self.files_config
        self.check_link(path)
        try:
            if geometry.kind == "audio":
                return read_audio(path, geometry.sample_rate, geometry.channels, config.limits, self.notes)
            size = geometry.height, geometry.width, geometry.channels
            return read_image(path, *size, config.limits, config.fit, self.notes)
        except OSError as error:  # deleted, or no permission
            raise MediaError(f"{path}: {error.strerror or 'no such file'}") from None

    def alignment(self, number: int) -> TimedUnits | None:
        """See Corpus.alignment; from the file beside the media."""
        media = self.path(number)
        found = {}
        for extension in EXTENSIONS:
            data = self.read_sidecar(media.with_suffix(extension), MAX_FILE_BYTES)
            if data is not None:
                found[extension] = data
        if len(found) > 1:
            raise MediaError(f"{media.with_suffix('')}: has {' and '.join(found)}; keep one of them")
        for extension, data in found.items():
            try:
                return read_alignment(data, extension)
            except ValueError as error:
                raise MediaError(f"{media.with_suffix(extension)}: {error}") from None
        return None

    def check_link(self, path: Path) -> None:
        """Raise MediaError if a path leads out of the folder and links are not followed."""
        if not self.files_config.follow_links and not is_inside(self.root, path):
            raise MediaError(f"{path}: {OUTSIDE_LINK}")

    def read_text(self, path: Path) -> str | None:
        """Content of a sidecar file, stripped; None if there is no such file."""
        data = self.read_sidecar(path, MAX_TEXT_BYTES)
        if data is None:
            return None
        try:
            text = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise MediaError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
        if not text:
            raise MediaError(f"{path}: is empty; write the text into it or remove it")
        return text

    def read_sidecar(self, path: Path, max_bytes: int) -> bytes | None:
        """Bytes of a sidecar file; None if there is no such file."""
        try:
            file = open_regular(path)
        except FileNotFoundError:
            return None
        with file:
            self.check_link(path)
            try:
                data = file.read(max_bytes + 1)
            except OSError as error:
                raise MediaError(f"{path}: cannot be read ({error.strerror})") from None
        if len(data) > max_bytes:
            raise MediaError(f"{path}: more than {max_bytes} bytes of text")
        return data


def is_inside(root: str, path: str | Path) -> bool:
    """Whether a path with all links resolved lies in a folder; `root` must be an os.path.realpath."""
    found = os.path.realpath(path)
    return found == root or found.startswith(root.rstrip(os.sep) + os.sep)


def spell(name: str) -> str:
    """The name as valid Unicode: bytes that are not UTF-8 (surrogates in Python) become escapes like "\\\\xff"."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unique_ids(names: Iterable[str]) -> list[str]:
    """Unique ids of files, spelled as by `spell`."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        spelled = unique = spell(name)
        copies = 1
        while unique in taken:
            copies += 1
            unique = f"{spelled}#{copies}"
        taken.add(unique)
        found.append(unique)
    return found


@dataclass
class Walk:
    """Content of a folder."""

    files: list[str] = field(default_factory=list)
    """Regular files relative to the folder, sorted; name bytes that are not UTF-8 are surrogates."""
    outside: list[str] = field(default_factory=list)
    """Broken links, and links that lead out of the folder."""
    closed: list[str] = field(default_factory=list)
    """Unreadable folders."""
    special: list[str] = field(default_factory=list)
    """Pipes, sockets and devices."""


def walk(folder: Path, follow_links: bool) -> Walk:
    """Find the files in a folder and its subfolders, without hidden files and folders.

    Links to files inside the folder count as files; links to folders are followed only with follow_links, and each
    folder is visited once.
    """
    found, root = Walk(), os.path.realpath(folder)
    entered: set[tuple[int, int]] = set()
    todo = [""]
    while todo:
        below = todo.pop()
        try:
            with os.scandir(os.path.join(folder, below)) as entries:
                status = os.stat(os.path.join(folder, below))
                if (status.st_dev, status.st_ino) in entered:
                    continue
                entered.add((status.st_dev, status.st_ino))
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            found.closed.append(below)
            continue
        for entry in listed:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            try:
                mode = entry.stat().st_mode
            except OSError:  # a broken or circular link
                found.outside.append(name)
                continue
            link = entry.is_symlink()
            if link and not follow_links and not is_inside(root, entry.path):
                found.outside.append(name)
            elif stat.S_ISDIR(mode):
                if follow_links or not link:
                    todo.append(name)
            elif stat.S_ISREG(mode):
                found.files.append(name)
            else:
                found.special.append(name)
    found.files.sort()
    return found


def find_media(folder: Path, follow_links: bool = False, notes: Notes | None = None) -> list[str]:
    """Names of all media files in a folder and its subfolders, sorted, without hidden files and folders.

    Args:
        follow_links: also follow links that lead out of the folder.
        notes: collects notes about everything else in the folder.
    """
    found = walk(folder, follow_links)
    media = [name for name in found.files if Path(name).suffix.lower() in MEDIA_EXTENSIONS]
    if notes is not None:
        _note_others(found, media, notes)
    return media


def _note_others(found: Walk, media: Sequence[str], notes: Notes) -> None:
    described = {os.path.splitext(name)[0] for name in media}
    kinds: Counter[str] = Counter()
    for name in set(found.files).difference(media):
        stem, extension = os.path.splitext(name)
        sidecar = extension.lower() in SIDECARS and stem in described
        if not sidecar and os.path.basename(name) not in METADATA_FILES:
            kinds[spell(extension.lower()) or "without extension"] += 1
    if kinds:
        listed = ", ".join(
            f"{kind} {count}" for kind, count in sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
        )
        total = sum(kinds.values())
        notes.say(f"{total} {'file' if total == 1 else 'files'} of kinds that are not read: {listed}")
    for names, what in (
        (found.outside, "links that lead out of the folder or nowhere (to follow them: follow_links: true)"),
        (found.closed, "folders cannot be read"),
        (found.special, "pipes, sockets or devices are not read"),
    ):
        if names:
            shown = ", ".join(spell(name) or "." for name in sorted(names)[:3])
            notes.say(f"{len(names)} {what}: {shown}{', ...' if len(names) > 3 else ''}")
