"""One file of a shards folder, with the layout of a codes file; it is verified before use.

codes    [K, T1 + T2 + ...] in the smallest unsigned type, all items concatenated
offsets  [items + 1] int64: item i is codes[:, offsets[i] : offsets[i + 1]]
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...configs.files import DamagedFile, check_sha256, read_header, sha256_file, write_safetensors
from ..codes import concatenate_codes
from ..spec import TokenSpec
from .shard_index import BUILD_AGAIN, INDEX_FILE, ShardFile

CHANGES = f"changes while it is read; stop the process that writes it, then {BUILD_AGAIN}"
TICK = 50_000_000
"""Nanoseconds within which two writes can leave the same timestamps on a file."""
Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime of a file: any later write changes it."""


def write_shard(path: Path, spec: TokenSpec, codes: Sequence[Tensor]) -> ShardFile:
    """Write items of codes, each [K, T], atomically; returns the file's entry in the index."""
    metadata = {"format": "tessera-shard", "spec": spec.model_dump_json()}
    write_safetensors(path, concatenate_codes(codes, spec), metadata)
    return ShardFile(file=path.name, sha256=sha256_file(path), items=len(codes))


class OpenShard:
    """An open shard; it returns only bytes that were verified.

    Items are read by position, not through a memory map: truncation is then an error instead of SIGBUS.

    Args:
        path: the file.
        file: its entry in the index.
        lengths: [items] frames of its items according to the index.
        num_codebooks: K.
        layout: version of the index; in version 1 codes are [frames, K].
        verified: the file's stamp at an earlier verification; if None or changed, the file is verified here.
    Raises:
        FileNotFoundError: no such file. DamagedFile, ValueError: not the file described by the index.
    """

    def __init__(
        self,
        path: Path,
        file: ShardFile,
        lengths: np.ndarray,
        num_codebooks: int,
        layout: int,
        verified: Stamp | None = None,
    ):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, {INDEX_FILE} lists it; {BUILD_AGAIN}")
        self.num_codebooks, self.layout = num_codebooks, layout
        self.file = open(path, "rb", buffering=0)
        self.verified: Stamp = self.stamp()
        self.settled: bool = not 0 <= time.time_ns() - max(self.verified[3:]) < TICK
        """Whether any later write is guaranteed to change the stamp."""
        if self.verified != verified:
            check_sha256(path, sha256_file(path), file.sha256, BUILD_AGAIN)
        header = read_header(path)
        shapes = {name: list(entry.shape) for name, entry in header.tensors.items()}
        frames = int(lengths.sum())
        wanted = {
            "codes": [num_codebooks, frames] if layout > 1 else [frames, num_codebooks],
            "offsets": [len(lengths) + 1],
        }
        if shapes != wanted:
            raise ValueError(
                f"{path}: holds {sorted(shapes)} with codes {shapes.get('codes')}, the index asks for codes "
                f"{wanted['codes']} and offsets of {len(lengths)} items; {BUILD_AGAIN}"
            )
        self.codes, stored = header.tensors["codes"], header.tensors["offsets"]
        self.offsets = np.frombuffer(self._read(stored.start, stored.size), dtype="<i8")
        """[items + 1]"""
        if stored.dtype != torch.int64 or self.offsets[0] != 0 or np.diff(self.offsets).tolist() != lengths.tolist():
            raise ValueError(f"{path}: its items have other lengths than in {INDEX_FILE}; {BUILD_AGAIN}")
        if _stamp(os.stat(path)) != self.verified:
            raise DamagedFile(f"{path}: {CHANGES}")

    def stamp(self) -> Stamp:
        """Stamp of the opened file, even if another file has replaced it."""
        return _stamp(os.fstat(self.file.fileno()))

    def item(self, number: int) -> Tensor | None:
        """Codes [K, T] of an item in the stored dtype; None if the file has changed since it was verified."""
        books, width = self.num_codebooks, self.codes.dtype.itemsize
        start, stop = self.offsets[number : number + 2].tolist()
        if self.layout > 1:
            frames = int(self.offsets[-1])
            places, size = [book * frames + start for book in range(books)], stop - start
        else:
            places, size = [start * books], (stop - start) * books
        found = b"".join(self._read(self.codes.start + place * width, size * width) for place in places)
        if len(found) != len(places) * size * width or self.stamp() != self.verified:
            return None
        codes = torch.frombuffer(bytearray(found), dtype=self.codes.dtype)
        return codes.view(books, -1) if self.layout > 1 else codes.view(-1, books).T

    def _read(self, start: int, size: int) -> bytes:
        """Bytes of the file, fewer if it ends earlier."""
        return os.pread(self.file.fileno(), size, start)


def _stamp(found: os.stat_result) -> Stamp:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
