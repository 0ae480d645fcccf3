"""Reading shards: the index and the files it lists, checked before they are used. Written by `build_shards`."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor

from .config import Config, check_config
from .files import check_safetensors_header, read_json, sha256_file
from .spec import TokenSpec

INDEX_FILE = "index.json"
OPEN_SHARDS = 64
"""Shards mapped into memory at once by one reader."""


class ShardFile(Config):
    """One file of the index."""

    file: str
    sha256: str
    items: int = Field(ge=1)


class Skipped(Config):
    """A corpus item that could not be used."""

    id: str
    reason: str


class Index(Config):
    """index.json."""

    format: Literal["tessera-shards"] = "tessera-shards"
    version: Literal[1] = 1
    spec: TokenSpec
    build: str
    """SHA-256 over what was built: corpus, items and tokenizer."""
    label_names: list[str]
    files: list[ShardFile]
    skipped: list[Skipped]
    ids: list[str]
    lengths: list[int]
    """Frames of each item."""
    labels: list[int]
    """Place in label_names, -1 for none."""
    texts: list[str | None]


@dataclass(frozen=True)
class ShardItem:
    """One item read back."""

    codes: Tensor
    """[K, T] long."""
    label: int | None
    """Place in Shards.label_names."""
    text: str | None
    id: str


class Shards:
    """A folder of shards, read on demand.

    Args:
        folder: what `build_shards` wrote.
    Raises:
        FileNotFoundError: no shards there. ValueError: an index that contradicts itself.

    A file's SHA-256 is checked when its first item is read, each item's codes when it is read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / INDEX_FILE
        if not path.is_file():
            unfinished = any(self.folder.glob("part-*.json")) if self.folder.is_dir() else False
            hint = "was not finished; run tessera shards again" if unfinished else "make it with: tessera shards CONFIG"
            raise FileNotFoundError(f"{self.folder}: no {INDEX_FILE} there; {hint}")
        self.index = check_config(read_json(path), Index, str(path))
        self._check_index(path)
        self.spec: TokenSpec = self.index.spec
        self.label_names: list[str] = self.index.label_names
        self.skipped: list[Skipped] = self.index.skipped
        self.lengths: np.ndarray = np.array(self.index.lengths, dtype=np.int64)
        """[n] frames of each item."""
        self.labels: np.ndarray = np.array(self.index.labels, dtype=np.int64)
        """[n] places in label_names, -1 for none."""
        self._first_items = np.cumsum([0, *(file.items for file in self.index.files)])
        self._verified: set[int] = set()
        self._opened: OrderedDict[int, Any] = OrderedDict()

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
            if Path(file.file).name != file.file:
                raise ValueError(f"{path}: '{file.file}' is not a file name in this folder")

    def __len__(self) -> int:
        return len(self.index.ids)

    def texts(self) -> list[str | None]:
        """Transcripts of all items."""
        return self.index.texts

    def item(self, number: int) -> ShardItem:
        """Read one item. ValueError: the file was changed, or codes the tokenizer does not have."""
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        shard = int(np.searchsorted(self._first_items, number, side="right")) - 1
        first = int(self._first_items[shard])
        start = int(self.lengths[first:number].sum())
        codes = self._open(shard)[start : start + int(self.lengths[number])].long().T.contiguous()
        sizes = torch.tensor(self.spec.cardinalities)[:, None]
        if bool((codes >= sizes).any()):
            raise ValueError(
                f"{self.folder / self.index.files[shard].file}: item '{self.index.ids[number]}' has codes up to "
                f"{codes.amax(1).tolist()}, tokenizer '{self.spec.name}' has {list(self.spec.cardinalities)}"
            )
        label = int(self.labels[number])
        return ShardItem(codes, None if label < 0 else label, self.index.texts[number], self.index.ids[number])

    def _open(self, shard: int) -> Any:
        """Rows [sum of T, K] of a shard, mapped into memory, checked when first opened."""
        if shard in self._opened:
            self._opened.move_to_end(shard)
            return self._opened[shard]
        path = self.folder / self.index.files[shard].file
        if shard not in self._verified:
            self._verify(shard)
            self._verified.add(shard)
        rows = safe_open(path, framework="pt").get_slice("codes")
        self._opened[shard] = rows
        if len(self._opened) > OPEN_SHARDS:
            self._opened.popitem(last=False)
        return rows

    def verify(self) -> None:
        """Check every file against its SHA-256 and the index; ValueError names the first that differs."""
        for shard in range(len(self.index.files)):
            self._verify(shard)

    def _verify(self, shard: int) -> None:
        file = self.index.files[shard]
        path = self.folder / file.file
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, {INDEX_FILE} lists it; build the shards again")
        found = sha256_file(path)
        if found != file.sha256:
            raise ValueError(
                f"{path}: damaged: its SHA-256 is {found[:12]}, {INDEX_FILE} says {file.sha256[:12]}; remove "
                f"{self.folder} and build the shards again"
            )
        check_safetensors_header(path)
        first, last = int(self._first_items[shard]), int(self._first_items[shard + 1])
        wanted = [int(self.lengths[first:last].sum()), self.spec.num_codebooks]
        with safe_open(path, framework="pt") as opened:
            names = sorted(opened.keys())
            shape = opened.get_slice("codes").get_shape() if "codes" in names else None
        if names != ["codes", "offsets"] or shape != wanted:
            raise ValueError(f"{path}: holds {names} with codes {shape}, the index asks for codes {wanted}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}  # a worker process maps the files itself
