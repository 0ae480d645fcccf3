"""Shard reader: the index and its files, verified before use. `build_shards` writes them."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import FailFast, Field
from torch import Tensor

from ...configs.files import DamagedFile, check_sha256, read_header, read_safetensors, read_sealed_json, sha256_file
from ...configs.json_limits import INDEX
from ...configs.names import check_file_name
from ...configs.recognize import describe_wrong, folder_kind
from ...configs.schema import Config, check_config
from ..spec import TokenSpec

INDEX_FILE = "index.json"
BUILD_AGAIN = "run tessera shards again, which builds what is damaged or missing"
CHANGES = f"changes while it is read; stop what writes it, then {BUILD_AGAIN}"
OPEN_SHARDS = 64
"""Maximum number of shards that a reader keeps open."""
TICK = 50_000_000
"""Nanoseconds within which two writes can leave the same timestamps on a file."""
Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime of a file: any later write changes it."""


class ShardFile(Config):
    """A file in the index."""

    file: str
    sha256: str
    items: int = Field(ge=1)


class Skipped(Config):
    """A corpus item that was skipped as unusable."""

    id: str
    reason: str


class Index(Config):
    """index.json."""

    format: Literal["tessera-shards"] = "tessera-shards"
    version: Literal[1] = 1
    spec: TokenSpec
    build: str
    """SHA-256 of the build inputs: corpus, items and tokenizer."""
    label_names: Annotated[list[str], FailFast()]
    files: Annotated[list[ShardFile], FailFast()]
    skipped: Annotated[list[Skipped], FailFast()]
    ids: Annotated[list[str], FailFast()]
    lengths: Annotated[list[int], FailFast()]
    """Frames of each item."""
    labels: Annotated[list[int], FailFast()]
    """Index into label_names, -1 for none."""
    texts: Annotated[list[str | None], FailFast()]


@dataclass(frozen=True)
class ShardItem:
    """One item of a shard."""

    codes: Tensor
    """[K, T] long."""
    label: int | None
    """Index into Shards.label_names."""
    text: str | None
    id: str


class OpenShard:
    """An open shard; it returns only bytes that were verified.

    Items are read by position, not through a memory map: truncation is then an error instead of SIGBUS.

    Args:
        path: the file.
        sha256: its SHA-256 in the index, hex.
        ends: [items + 1], boundaries of its items according to the index.
        num_codebooks: K.
        verified: the file's stamp at an earlier verification; if None or changed, the file is verified here.
    Raises:
        FileNotFoundError: no such file. DamagedFile, ValueError: not the file described by the index.
    """

    def __init__(self, path: Path, sha256: str, ends: np.ndarray, num_codebooks: int, verified: Stamp | None = None):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, {INDEX_FILE} lists it; {BUILD_AGAIN}")
        self.path, self.num_codebooks = path, num_codebooks
        self.file = open(path, "rb", buffering=0)
        self.verified: Stamp = self.stamp()
        self.settled: bool = not 0 <= time.time_ns() - max(self.verified[3:]) < TICK
        """Whether any later write is guaranteed to change the stamp."""
        if self.verified != verified:
            check_sha256(path, sha256_file(path), sha256, BUILD_AGAIN)
        header = read_header(path)
        shapes = {name: list(entry.shape) for name, entry in header.tensors.items()}
        wanted = {"codes": [int(ends[-1]), num_codebooks], "offsets": [len(ends)]}
        if shapes != wanted:
            raise ValueError(
                f"{path}: holds {sorted(shapes)} with codes {shapes.get('codes')}, the index asks for codes "
                f"{wanted['codes']} and offsets of {len(ends) - 1} items; {BUILD_AGAIN}"
            )
        self.entry = header.tensors["codes"]
        if self.verified != verified:
            offsets = read_safetensors(path, wanted="offsets".__eq__)[0]["offsets"]
            if offsets.tolist() != ends.tolist():
                raise ValueError(f"{path}: its items have other lengths than in {INDEX_FILE}; {BUILD_AGAIN}")
        if _stamp(os.stat(path)) != self.verified:
            raise DamagedFile(f"{path}: {CHANGES}")

    def stamp(self) -> Stamp:
        """Stamp of the opened file, even if another file has replaced it."""
        return _stamp(os.fstat(self.file.fileno()))

    def rows(self, start: int, stop: int) -> Tensor | None:
        """Codes [stop - start, K] in the stored dtype; None if the file has changed since it was verified."""
        width = self.num_codebooks * self.entry.dtype.itemsize
        wanted = (stop - start) * width
        found = os.pread(self.file.fileno(), wanted, self.entry.start + start * width)
        if len(found) != wanted or self.stamp() != self.verified:
            return None
        return torch.frombuffer(bytearray(found), dtype=self.entry.dtype).view(stop - start, self.num_codebooks)


class Shards:
    """A folder of shards, read on demand.

    Args:
        folder: output folder of `build_shards`.
    Raises:
        FileNotFoundError: no shards there. ValueError: the index is damaged or inconsistent.

    The SHA-256 of a file is checked when its first item is read, and again if the file was modified since; the range of
    an item's codes is checked on each read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / INDEX_FILE
        if not path.is_file():
            wrong = describe_wrong(self.folder, "a folder of shards") if folder_kind(self.folder) != "shards" else None
            if wrong is not None:
                raise FileNotFoundError(wrong)
            unfinished = any(self.folder.glob("part-*.json")) if self.folder.is_dir() else False
            hint = "was not finished; run tessera shards again" if unfinished else "make it with: tessera shards CONFIG"
            raise FileNotFoundError(f"{self.folder}: no {INDEX_FILE} there; {hint}")
        advice = "remove it and run tessera shards again, which encodes the corpus anew"
        data = read_sealed_json(path, INDEX, advice)
        self.index = check_config(data, Index, str(path))
        self._check_index(path)
        self.spec: TokenSpec = self.index.spec
        self.label_names: list[str] = self.index.label_names
        self.skipped: list[Skipped] = self.index.skipped
        self.lengths: np.ndarray = np.array(self.index.lengths, dtype=np.int64)
        """[n] frames of each item."""
        self.labels: np.ndarray = np.array(self.index.labels, dtype=np.int64)
        """[n] indices into label_names, -1 for none."""
        self._first_items = np.cumsum([0, *(file.items for file in self.index.files)])
        self._starts = np.cumsum([0, *self.lengths])
        self._verified: dict[int, Stamp] = {}
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()

    def _check_index(self, path: Path) -> None:
        index, count = self.index, len(self.index.ids)
        columns = {"lengths": index.lengths, "labels": index.labels, "texts": index.texts}
        for name, column in columns.items():
            if len(column) != count:
                raise ValueError(
                    f"{path}: {len(column)} {name} for {count} ids; the index is damaged, build the shards again"
                )
        if sum(file.items for file in index.files) != count or not count:
            raise ValueError(
                f"{path}: its files hold {sum(file.items for file in index.files)} items, it lists {count}"
            )
        if min(index.lengths) < 1 or not -1 <= min(index.labels) <= max(index.labels) < max(1, len(index.label_names)):
            raise ValueError(f"{path}: a length below 1, or a label that is none of its {len(index.label_names)} names")
        for file in index.files:
            check_file_name(file.file, str(path))

    def __len__(self) -> int:
        return len(self.index.ids)

    def texts(self) -> list[str | None]:
        """Transcripts of all items."""
        return self.index.texts

    def item(self, number: int) -> ShardItem:
        """Read one item. Raises ValueError if the file was changed or codes are out of range."""
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        shard = int(np.searchsorted(self._first_items, number, side="right")) - 1
        start = int(self._starts[number] - self._starts[self._first_items[shard]])
        codes = self._read(shard, start, start + int(self.lengths[number])).long().T.contiguous()
        sizes = torch.tensor(self.spec.cardinalities)[:, None]
        if bool((codes >= sizes).any()):
            raise ValueError(
                f"{self.folder / self.index.files[shard].file}: item '{self.index.ids[number]}' has codes up to "
                f"{codes.amax(1).tolist()}, tokenizer '{self.spec.name}' has {list(self.spec.cardinalities)}"
            )
        label = int(self.labels[number])
        return ShardItem(codes, None if label < 0 else label, self.index.texts[number], self.index.ids[number])

    def _read(self, shard: int, start: int, stop: int) -> Tensor:
        """Rows [stop - start, K] of a shard's codes, from verified bytes."""
        for _ in range(3):
            rows = self._open(shard).rows(start, stop)
            if rows is not None:
                return rows
            del self._opened[shard]  # the file was touched; reopening it checks its hash
        raise DamagedFile(f"{self.path_of(shard)}: {CHANGES}")

    def _open(self, shard: int) -> OpenShard:
        """Open a shard; it is verified when first opened and whenever it has changed."""
        opened = self._opened.get(shard)
        if opened is not None and opened.settled:
            self._opened.move_to_end(shard)
            return opened
        opened = self._opened[shard] = self._checked(shard, self._verified.get(shard))
        if opened.settled:
            self._verified[shard] = opened.verified
        if len(self._opened) > OPEN_SHARDS:
            self._opened.popitem(last=False)
        return opened

    def path_of(self, shard: int) -> Path:
        """The file of a shard, by its position in index.files."""
        return self.folder / self.index.files[shard].file

    def verify(self) -> None:
        """Check every file against its SHA-256 and the index; ValueError names the first mismatch."""
        for shard in range(len(self.index.files)):
            self.verify_file(shard)

    def verify_file(self, shard: int) -> None:
        """`verify` for one file."""
        self._checked(shard)

    def _checked(self, shard: int, verified: Stamp | None = None) -> OpenShard:
        first, last = int(self._first_items[shard]), int(self._first_items[shard + 1])
        ends = self._starts[first : last + 1] - self._starts[first]
        sha256 = self.index.files[shard].sha256
        return OpenShard(self.path_of(shard), sha256, ends, self.spec.num_codebooks, verified)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}  # a worker process opens the files itself


def _stamp(found: os.stat_result) -> Stamp:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
