"""Corpora: where media, labels and transcripts come from. Items are read on demand; a bad one raises MediaError."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from .config import Config, ConfigError, check_config
from .files import read_safetensors
from .media import (
    AUDIO_FORMATS,
    DEFAULT_LIMITS,
    PICTURE_FORMATS,
    Fit,
    MediaError,
    MediaLimits,
    bytes_to_picture,
    read_audio,
    read_picture,
)
from .spec import AudioGeometry, PictureGeometry

METADATA_FILE = "metadata.jsonl"
MAX_TEXT_BYTES = 64 << 10


class FolderCorpus(Config):
    """A folder of media files.

    With metadata.jsonl in it, the items are its lines: {"file": "a/b.wav", "text": "...", "label": "..."}, text and
    label optional. Otherwise all media files in it and its sub-folders are items, in the order of their names; the
    transcript of x.wav is x.txt beside it.
    """

    kind: Literal["folder"] = "folder"
    path: str
    labels: Literal["auto", "sidecar", "folder", "none"] = "auto"
    """Without metadata.jsonl. sidecar: x.label beside x.png. folder: the name of the file's folder, none for files at
    the top. auto: the sidecar where there is one, else the folder."""
    fit: Fit = "exact"
    """Pictures of another size. exact: an error. crop: scaled to cover it, middle kept. stretch: scaled to it."""
    limits: MediaLimits = DEFAULT_LIMITS


class ArraysCorpus(Config):
    """Pictures in a safetensors file: "images" uint8 [N, height, width] or [N, height, width, C]; "labels" integers [N]
    may be left out."""

    kind: Literal["arrays"] = "arrays"
    path: str


CorpusConfig = Annotated[FolderCorpus | ArraysCorpus, Field(discriminator="kind")]


@dataclass(frozen=True)
class Item:
    """What is known of an item without decoding it."""

    id: str
    """Path relative to the corpus' folder, or the number in its arrays."""
    label: str | None
    text: str | None


class Corpus:
    """Base of the corpora; made by `open_corpus`."""

    looked_for: str
    """For the error when nothing is found."""

    def __len__(self) -> int:
        raise NotImplementedError

    def ids(self) -> Sequence[str]:
        """Ids of all items, in order, without reading them."""
        raise NotImplementedError

    def item(self, number: int) -> Item:
        """Label and transcript of an item. MediaError: a sidecar file that cannot be used."""
        raise NotImplementedError

    def media(self, number: int, geometry: AudioGeometry | PictureGeometry) -> Tensor:
        """An item's samples [C, N] or picture [C, height, width], float32 in [-1, 1], as `geometry` wants it.

        Raises MediaError when this item cannot be used, ValueError when none of the corpus can.
        """
        raise NotImplementedError


def open_corpus(config: FolderCorpus | ArraysCorpus) -> Corpus:
    """Open a corpus. FileNotFoundError: no such path. ValueError: nothing in it, or wrong metadata or arrays."""
    corpus = OPEN[config.kind](config)
    if not len(corpus):
        raise ValueError(f"{config.path}: no items in this corpus (looked for {corpus.looked_for})")
    return corpus


class MetadataLine(Config):
    """A line of metadata.jsonl."""

    file: str
    label: str | int | None = None
    text: str | None = None


class FolderItems(Corpus):
    """See FolderCorpus."""

    looked_for = f"{METADATA_FILE}, {' '.join([*AUDIO_FORMATS, *PICTURE_FORMATS])}"

    def __init__(self, config: FolderCorpus):
        self.config = config
        self.folder = Path(config.path)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder")
        metadata = self.folder / METADATA_FILE
        self.described = _read_metadata(metadata) if metadata.is_file() else None
        self.files = list(self.described) if self.described is not None else find_media(self.folder)

    def __len__(self) -> int:
        return len(self.files)

    def ids(self) -> Sequence[str]:
        return self.files

    def item(self, number: int) -> Item:
        name = self.files[number]
        if self.described is not None:
            line = self.described[name]
            return Item(name, None if line.label is None else str(line.label), line.text)
        path = self.folder / name
        return Item(name, self._label(path), _read_text(path.with_suffix(".txt")))

    def _label(self, path: Path) -> str | None:
        how = self.config.labels
        label = _read_text(path.with_suffix(".label")) if how in ("auto", "sidecar") else None
        if label is None and how in ("auto", "folder") and path.parent != self.folder:
            label = path.parent.name
        return label

    def media(self, number: int, geometry: AudioGeometry | PictureGeometry) -> Tensor:
        path, config = self.folder / self.files[number], self.config
        try:
            if geometry.kind == "audio":
                return read_audio(path, geometry.sample_rate, geometry.channels, config.limits)
            return read_picture(path, geometry.height, geometry.width, geometry.channels, config.limits, config.fit)
        except OSError as error:  # gone, or not ours to read
            raise MediaError(f"{path}: {error.strerror or 'no such file'}") from None


def find_media(folder: Path) -> list[str]:
    """Names of all media files below a folder, sorted; hidden files and folders are left out."""
    extensions = {*AUDIO_FORMATS, *PICTURE_FORMATS}
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if (
            path.suffix.lower() in extensions
            and not any(part.startswith(".") for part in name.parts)
            and path.is_file()
        ):
            found.append(name.as_posix())
    return sorted(found)


def _read_metadata(path: Path) -> dict[str, MetadataLine]:
    """Lines of metadata.jsonl by file name, in their order."""
    lines: dict[str, MetadataLine] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not JSON ({error})") from None
        line = check_config(data, MetadataLine, where)
        name = PurePosixPath(line.file)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise ConfigError(f"{where}: file '{line.file}' must be a path inside {path.parent}")
        if str(name) in lines:
            raise ConfigError(f"{where}: file '{line.file}' occurs twice")
        lines[str(name)] = line
    return lines


def _read_text(path: Path) -> str | None:
    """Content of a sidecar file without surrounding space; None when there is no such file."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_TEXT_BYTES:
        raise MediaError(f"{path}: more than {MAX_TEXT_BYTES} bytes of text")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise MediaError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not text:
        raise MediaError(f"{path}: is empty; write the text into it or remove it")
    return text


class ArrayItems(Corpus):
    """See ArraysCorpus."""

    looked_for = "rows of 'images'"

    def __init__(self, config: ArraysCorpus):
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

    def media(self, number: int, geometry: AudioGeometry | PictureGeometry) -> Tensor:
        if geometry.kind != "picture":
            raise ValueError(f"{self.path}: holds pictures, the tokenizer wants {geometry.kind}")
        wanted = [geometry.height, geometry.width, geometry.channels]
        if list(self.images.shape[1:]) != wanted:
            raise ValueError(f"{self.path}: pictures are {list(self.images.shape[1:])}, the tokenizer wants {wanted}")
        return bytes_to_picture(self.images[number])


OPEN = {"folder": FolderItems, "arrays": ArrayItems}
