"""Shard reader: the index and its files, verified before use. `build_shards` writes them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...configs.files import DamagedFile
from ...configs.recognize import describe_wrong, folder_kind
from ..alignment.alignment import Alignment, parse_alignment
from ..spec import TokenSpec
from .shard_file import CHANGES, OpenShard, Stamp
from .shard_index import INDEX_FILE, Skipped, read_index

OPEN_SHARDS = 64
"""Maximum number of shards that a reader keeps open."""


@dataclass(frozen=True)
class ShardItem:
    """One item of a shard."""

    codes: Tensor
    """[K, T] long."""
    label: int | None
    """Index into Shards.label_names."""
    text: str | None
    id: str


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
        self.index = read_index(path)
        self.spec: TokenSpec = self.index.spec
        self.label_names: list[str] = self.index.label_names
        self.skipped: list[Skipped] = self.index.skipped
        self.lengths: np.ndarray = np.array(self.index.lengths, dtype=np.int64)
        """[n] frames of each item."""
        self.labels: np.ndarray = np.array(self.index.labels, dtype=np.int64)
        """[n] indices into label_names, -1 for none."""
        self._first_items = np.cumsum([0, *(file.items for file in self.index.files)])
        self._verified: dict[int, Stamp] = {}
        self._opened: OrderedDict[int, OpenShard] = OrderedDict()

    def __len__(self) -> int:
        return len(self.index.ids)

    def texts(self) -> list[str | None]:
        """Transcripts of all items."""
        return self.index.texts

    def alignment(self, number: int) -> Alignment | None:
        """Units of an item with their frames, None if it has none. Raises ValueError if they are not valid."""
        column = self.index.alignments
        text = column[number] if column else None
        if text is None:
            return None
        where = f"{self.folder / INDEX_FILE}: item '{self.index.ids[number]}'"
        return parse_alignment(text, int(self.lengths[number]), where)

    def item(self, number: int) -> ShardItem:
        """Read one item. Raises ValueError if the file was changed or codes are out of range."""
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        shard = int(np.searchsorted(self._first_items, number, side="right")) - 1
        codes = self._read(shard, number - int(self._first_items[shard])).long().contiguous()
        sizes = torch.tensor(self.spec.cardinalities)[:, None]
        if bool((codes >= sizes).any()):
            raise ValueError(
                f"{self.folder / self.index.files[shard].file}: item '{self.index.ids[number]}' has codes up to "
                f"{codes.amax(1).tolist()}, tokenizer '{self.spec.name}' has {list(self.spec.cardinalities)}"
            )
        label = int(self.labels[number])
        return ShardItem(codes, None if label < 0 else label, self.index.texts[number], self.index.ids[number])

    def _read(self, shard: int, item: int) -> Tensor:
        """Codes [K, T] of an item of a shard, from verified bytes."""
        for _ in range(3):
            codes = self._open(shard).item(item)
            if codes is not None:
                return codes
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
        lengths = self.lengths[self._first_items[shard] : self._first_items[shard + 1]]
        index = self.index
        return OpenShard(
            self.path_of(shard), index.files[shard], lengths, self.spec.num_codebooks, index.version, verified
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}  # a worker process opens the files itself
