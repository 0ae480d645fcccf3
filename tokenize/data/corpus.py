"""Corpora of media with labels and transcripts. Items are read on demand; an unusable item raises MediaError."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from ...configs.files import read_safetensors
from ...configs.json_limits import read_json_lines
from ...configs.names import GivenPath
from ...configs.schema import Config, ConfigError, FingerprintedConfig, check_config
from ..alignment.alignment import TimedUnits
from ..alignment.alignment_file import read_intervals
from ..spec import AudioGeometry, ImageGeometry
from .corpus_items import MAX_TEXT_BYTES, Corpus, FileItems, Item, find_media, spell, unique_ids
from .manifest import ManifestCorpus, ManifestItems, manifest_in
from .media import DEFAULT_LIMITS, MEDIA_EXTENSIONS, Fit, MediaError, MediaLimits, bytes_to_image, open_regular

__all__ = [
    "MAX_TEXT_BYTES",
    "ArraysCorpus",
    "Corpus",
    "CorpusConfig",
    "FolderCorpus",
    "Item",
    "ManifestCorpus",
    "find_media",
    "open_corpus",
]

METADATA_FILE = "metadata.jsonl"


class FolderCorpus(FingerprintedConfig):
    """A folder of media files.

    If it contains metadata.jsonl, the items are its lines: {"file": "a/b.wav", "text": "...", "label": "..."}, text and
    label optional. Otherwise all media files in the folder and its subfolders are items, sorted by name; the
    transcript of x.wav is x.txt in the same folder. An alignment is the key "alignment", [[start, end, unit], ...] in
    seconds, or x.align or x.TextGrid beside x.wav.
    """

    added: ClassVar[frozenset[str]] = frozenset({"follow_links"})

    kind: Literal["folder"] = "folder"
    path: GivenPath
    """The folder."""
    labels: Literal["auto", "sidecar", "folder", "none"] = "auto"
    """Source of labels without metadata.jsonl. sidecar: x.label next to x.png. folder: the name of the file's folder,
    none at the top level. auto: the sidecar if there is one, otherwise the folder."""
    fit: Fit = "exact"
    """Images of another size. exact: an error. crop: resize to cover it, center crop. stretch: resize to it."""
    limits: MediaLimits = DEFAULT_LIMITS
    """Limits of a media file; a file beyond them is skipped and reported."""
    follow_links: bool = False
    """Follow symbolic links that lead out of the folder; otherwise they are skipped and reported."""


class ArraysCorpus(Config):
    """Images in a safetensors file: "images" uint8 [N, height, width] or [N, height, width, C], and optional "labels",
    integers [N]."""

    kind: Literal["arrays"] = "arrays"
    path: GivenPath
    """The safetensors file."""


CorpusConfig = Annotated[FolderCorpus | ArraysCorpus | ManifestCorpus, Field(discriminator="kind")]


def open_corpus(config: FolderCorpus | ArraysCorpus | ManifestCorpus) -> Corpus:
    """Open a corpus. FileNotFoundError: no such path. ValueError: no items, or invalid metadata or arrays."""
    corpus = OPEN[config.kind](config)
    if not len(corpus):
        notes = "".join(f"; {line}" for line in corpus.notes.lines())
        raise ValueError(f"{config.path}: no items in this corpus (looked for {corpus.looked_for}){notes}")
    return corpus


class MetadataLine(Config):
    """A line of metadata.jsonl."""

    file: str
    label: str | int | None = None
    text: str | None = None
    alignment: list[tuple[FiniteFloat, FiniteFloat, str]] | None = None
    """Start and end of each unit in seconds."""


class FolderItems(FileItems):
    """Corpus of a folder of media files, see FolderCorpus."""

    looked_for = f"{METADATA_FILE}, {' '.join(MEDIA_EXTENSIONS)}"

    def __init__(self, config: FolderCorpus):
        folder = Path(config.path)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        super().__init__(folder, config)
        self.config = config
        metadata = folder / METADATA_FILE
        self.described = None
        if metadata.is_file():
            self.check_link(metadata)
            self.described = _read_metadata(metadata)
        self.files = (
            list(self.described) if self.described is not None else find_media(folder, config.follow_links, self.notes)
        )
        self.names = unique_ids(self.files)
        manifest = None if self.described is not None else manifest_in(folder)
        if manifest is not None:
            self.notes.say(
                f"{manifest} is not read by a corpus of kind folder; to use it, write corpus: {{kind: manifest, "
                f"path: {folder}}}"
            )

    def __len__(self) -> int:
        return len(self.files)

    def ids(self) -> Sequence[str]:
        return self.names

    def item(self, number: int) -> Item:
        file, name = self.files[number], self.names[number]
        if self.described is not None:
            line = self.described[file]
            return Item(name, None if line.label is None else str(line.label), line.text)
        path = self.folder / file
        return Item(name, self._label(path), self.read_text(path.with_suffix(".txt")))

    def alignment(self, number: int) -> TimedUnits | None:
        """See Corpus.alignment; from metadata.jsonl, or the file beside the media."""
        file = self.files[number]
        given = None if self.described is None else self.described[file].alignment
        if given is None:
            return super().alignment(number)
        try:
            return read_intervals(given)
        except ValueError as error:
            raise MediaError(f"{self.folder / METADATA_FILE}: alignment of '{file}': {error}") from None

    def _label(self, path: Path) -> str | None:
        how = self.config.labels
        label = self.read_text(path.with_suffix(".label")) if how in ("auto", "sidecar") else None
        if label is None and how in ("auto", "folder") and path.parent != self.folder:
            label = spell(path.parent.name)
        return label

    def path(self, number: int) -> Path:
        return self.folder / self.files[number]


def _read_metadata(path: Path) -> dict[str, MetadataLine]:
    """Lines of metadata.jsonl by file name, in file order."""
    lines: dict[str, MetadataLine] = {}
    with open_regular(path) as file:
        found = list(read_json_lines(file, path))
    for where, data in found:
        if isinstance(data, dict) and "file" not in data and "file_name" in data:
            raise ConfigError(
                f"{where}: has the key file_name (Hugging Face datasets) instead of file; write corpus: "
                f"{{kind: manifest, path: {path.parent}}}"
            )
        line = check_config(data, MetadataLine, where)
        name = PurePosixPath(line.file)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise ConfigError(f"{where}: file '{line.file}' must be a path inside {path.parent}")
        if str(name) in lines:
            raise ConfigError(f"{where}: file '{line.file}' occurs twice")
        lines[str(name)] = line
    return lines


class ArrayItems(Corpus):
    """Corpus of images in a safetensors file, see ArraysCorpus."""

    looked_for = "rows of 'images'"

    def __init__(self, config: ArraysCorpus):
        super().__init__()
        self.path = config.path
        tensors, _ = read_safetensors(config.path)
        if "images" not in tensors:
            raise ValueError(f"{config.path}: has no tensor 'images' (found {', '.join(sorted(tensors)) or 'none'})")
        unknown = set(tensors) - {"images", "labels"}
        if unknown:
            raise ValueError(
                f"{config.path}: unknown tensors {', '.join(sorted(unknown))}; allowed are images and labels"
            )
        images, labels = tensors["images"], tensors.get("labels")
        if images.dtype != torch.uint8 or images.dim() not in (3, 4):
            found = f"{images.dtype} {list(images.shape)}"
            raise ValueError(
                f"{config.path}: images must be uint8 [N, height, width] or [N, height, width, C], found {found}"
            )
        self.images = images if images.dim() == 4 else images[..., None]
        if labels is not None and (
            labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex()
        ):
            found = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"{config.path}: labels must be {len(images)} integers, found {found}")
        self.labels = None if labels is None else labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def ids(self) -> Sequence[str]:
        return [str(number) for number in range(len(self))]

    def item(self, number: int) -> Item:
        return Item(str(number), None if self.labels is None else str(int(self.labels[number])), None)

    def media(self, number: int, geometry: AudioGeometry | ImageGeometry) -> Tensor:
        if geometry.kind != "picture":
            raise ValueError(f"{self.path}: holds images, the tokenizer encodes {geometry.kind}")
        wanted = [geometry.height, geometry.width, geometry.channels]
        if list(self.images.shape[1:]) != wanted:
            raise ValueError(f"{self.path}: images are {list(self.images.shape[1:])}, the tokenizer encodes {wanted}")
        return bytes_to_image(self.images[number])


OPEN = {"folder": FolderItems, "arrays": ArrayItems, "manifest": ManifestItems}
