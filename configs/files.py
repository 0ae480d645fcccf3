"""Atomic file writes, and file reads that validate the content before use."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .json_limits import HEADER, SMALL, JsonLimits, parse_json, parse_measured, read_measured
from .output_place import cannot_write

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 100_000
BLOCK_BYTES = 1 << 20
COPY_AGAIN = "copy it again, or make it again"
CONTENT_KEY = "content_sha256"
"""Metadata key with a digest of a safetensors file's content, for files whose hash no other file records."""
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a full disk, an exhausted quota and a file size limit."""
_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n\Z')
_DTYPES = {
    name: getattr(torch, dtype)
    for name, dtype in {
        **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
        **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
        **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
        **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64"},
    }.items()
}
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,512}")


class DamagedFile(ValueError):
    """The content of a file differs from what was written."""


class DiskFull(OSError):
    """No space left on the disk; the message names the file."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def write_atomic(path: str | Path, content: bytes | Callable[[Path], Any], durable: bool = True) -> None:
    """Write a file atomically: if the process is killed, either the old file or the complete new one remains.

    Args:
        path: file to write; its folder is created if missing.
        content: the bytes, or a function that writes them to a given temporary path.
        durable: wait for the disk, so that the same holds after a power failure; slow for many files.
    Raises:
        DiskFull: the disk is full. OSError: another reason, see `cannot_write`. The old file remains unchanged.
    """
    path = Path(path)
    try:
        _write_atomic(path, content, durable)
    except Exception as error:
        number = error_number(error)
        if number is None:
            raise
        if number not in DISK_FULL:  # the error names a temporary file
            raise cannot_write(path, number) from None
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free
        raise DiskFull(
            number, f"no disk space to write this file ({os.strerror(number)}), {free:,} bytes are free", str(path)
        ) from None


def error_number(error: BaseException) -> int | None:
    """The errno of an OSError, or of the system error quoted by a safetensors error."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, safetensors.SafetensorError) else None
    return int(found[1]) if found else None


def _write_atomic(path: Path, content: bytes | Callable[[Path], Any], durable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Use a folder: safetensors creates its own temporary file next to the target.
    stage = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:50]}.", suffix=".part"))
    part = stage / path.name
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content)
        os.chmod(part, 0o644)  # safetensors writes 0600, unreadable for others in a shared folder
        if durable:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    if durable:
        fsync_dir(path.parent)


def fsync_dir(path: str | Path) -> None:
    """Make the entries of a folder (names, renames) durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically, indented, keys in the given order; raises ValueError on NaN and infinity."""
    write_atomic(path, json_bytes(data))


def json_bytes(data: Any) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_sealed_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object like `write_json`, with a final key "sha256": the hash of all bytes before it."""
    assert data and "sha256" not in data
    body = json_bytes(data).removesuffix(b"\n}\n")
    write_atomic(path, body + f',\n "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode())


def read_sealed_json(path: str | Path, limits: JsonLimits = SMALL, advice: str = COPY_AGAIN) -> Any:
    """Read a file written by `write_sealed_json`, without the key "sha256", or JSON of earlier versions without it.

    Raises:
        DamagedFile: the bytes differ from those written. ValueError: as `read_json`.
    """
    data, text = _parse_json(Path(path), limits)
    if not isinstance(data, dict) or "sha256" not in data:
        return data
    seal = _SEAL.search(text[-200:])
    body = text[: -len(seal.group())] if seal else b""
    if seal is None or hashlib.sha256(body).hexdigest() != seal.group(1).decode():
        raise DamagedFile(f"{path}: damaged or changed since it was written; {advice}")
    del data["sha256"]
    return data


def read_json(path: str | Path, limits: JsonLimits = SMALL) -> Any:
    """Read JSON; ValueError names the file if it exceeds the limits or is not usable JSON (json_limits.py)."""
    return _parse_json(Path(path), limits)[0]


def _parse_json(path: Path, limits: JsonLimits) -> tuple[Any, bytes]:
    with open(path, "rb") as file:
        text = read_measured(file, str(path), limits)
    return parse_measured(text, str(path)), text


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, sealed: bool = False
) -> None:
    """Write tensors and metadata atomically; the same content gives the same bytes.

    safetensors itself does not fsync, writes files readable by the owner only, and varies the order of metadata.

    Args:
        sealed: add a SHA-256 of the content to the metadata, which `read_safetensors` checks.
    """

    assert tensors, "safetensors 0.8 writes a broken header without tensors"
    if sealed:
        metadata = {**(metadata or {}), CONTENT_KEY: _content_digest(tensors, metadata or {})}

    def write(part: Path) -> None:
        safetensors.torch.save_file(dict(tensors), part, dict(metadata) if metadata else None)
        if metadata and len(metadata) > 1:
            _sort_metadata(part)

    write_atomic(path, write)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors header in place; nothing else moves."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same JSON in another order must fit"
        file.seek(8)
        file.write(text.ljust(size))


@dataclass(frozen=True)
class TensorEntry:
    """Location of a tensor in a safetensors file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte in the file."""
    size: int
    """Number of bytes."""


@dataclass(frozen=True)
class TensorHeader:
    """A validated safetensors header."""

    tensors: dict[str, TensorEntry]
    """In file order; their bytes fill the rest of the file without gaps."""
    metadata: dict[str, str]


def read_safetensors(
    path: str | Path,
    max_header: int = MAX_HEADER_BYTES,
    max_tensors: int = MAX_TENSORS,
    wanted: Callable[[str], bool] | None = None,
    sha256: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a safetensors file into memory.

    It does not use memory mapping: later changes of the file do not change tensors, and truncation is an error instead
    of SIGBUS. The header is validated first: the format allows headers that take seconds and gigabytes to parse,
    duplicate names, and names like "../../etc/x".

    Args:
        wanted: selects the tensors to read by name; None: all.
        sha256: expected SHA-256 of the file, hex, checked while reading; requires reading all tensors.
    Raises:
        FileNotFoundError: no such file. DamagedFile: the file does not match `sha256`, or its content does not match
            its own digest. ValueError: any other invalid content, in one line that names the file.
    """
    assert wanted is None or sha256 is None
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    digest = None if sha256 is None else hashlib.sha256()
    with open(path, "rb") as file:
        header = _read_header(path, file, max_header, max_tensors, digest)
        tensors = {}
        for name, entry in header.tensors.items():
            if wanted is None or wanted(name):
                tensors[name] = _read_tensor(path, file, entry, digest)
    if digest is not None:
        check_sha256(path, digest.hexdigest(), sha256)
    content = header.metadata.pop(CONTENT_KEY, None)
    if content is not None and wanted is None and content != _content_digest(tensors, header.metadata):
        raise DamagedFile(f"{path}: damaged: its tensors do not match their checksum; {COPY_AGAIN}")
    return tensors, header.metadata


def check_format(path: Path, metadata: Mapping[str, str], name: str) -> None:
    """Raise ValueError unless the metadata of a safetensors file is empty or only its format."""
    if metadata and metadata != {"format": name}:
        raise ValueError(f"{path}: its metadata is {str(metadata)[:100]}, expected the format {name}; {COPY_AGAIN}")


def read_header(path: str | Path, max_header: int = MAX_HEADER_BYTES, max_tensors: int = MAX_TENSORS) -> TensorHeader:
    """Read and validate only the header of a safetensors file; raises as `read_safetensors`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        return _read_header(path, file, max_header, max_tensors, None)


def map_file(path: Path, header: TensorHeader) -> Tensor:
    """The bytes of a safetensors file whose header was read before, mapped into memory: read when they are used, and
    never written. [size] uint8; DamagedFile if the file has become shorter since."""
    size = max((entry.start + entry.size for entry in header.tensors.values()), default=0)
    if path.stat().st_size < size:
        raise DamagedFile(f"{path}: was truncated while it was read; {COPY_AGAIN}")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def mapped_tensor(mapped: Tensor, entry: TensorEntry) -> Tensor:
    """A tensor of a mapped file, without a copy if its place in the file allows it; changes do not reach the file."""
    part = mapped[entry.start : entry.start + entry.size]
    if entry.start % entry.dtype.itemsize:
        part = part.clone()
    return part.view(entry.dtype).view(entry.shape)


def check_sha256(path: Path, found: str, wanted: str | None, advice: str = COPY_AGAIN) -> None:
    """Raise DamagedFile unless a file has the wanted SHA-256."""
    if found != wanted:
        raise DamagedFile(f"{path}: damaged: its SHA-256 is {found[:12]}, expected {str(wanted)[:12]}; {advice}")


def _read_header(path: Path, file: BinaryIO, max_header: int, max_tensors: int, digest: Any) -> TensorHeader:
    start = file.read(8)
    size = int.from_bytes(start, "little")
    available = os.fstat(file.fileno()).st_size - 8
    if available < 2 or size > available:
        raise ValueError(f"{path}: not a safetensors file, or cut short ({available + 8} bytes)")
    if size > max_header:
        raise ValueError(f"{path}: a safetensors header of {size} bytes, the limit is {max_header}")
    text = file.read(size)
    if digest is not None:
        digest.update(start + text)
    header = parse_json(text, f"{path}: not a safetensors file", HEADER)
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not a safetensors file (the header is not a mapping)")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path}: metadata must map names to strings")
    if len(header) > max_tensors:
        raise ValueError(f"{path}: {len(header)} tensors, the limit is {max_tensors}")
    entries = {}
    for name, entry in header.items():
        if not _TENSOR_NAME.fullmatch(name):
            raise ValueError(f"{path}: {name[:80]!r} is not a tensor name (letters, digits, dot, dash, underscore)")
        entries[name] = _entry(path, name, entry, 8 + size)
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)))
    end = 8 + size
    for name, entry in entries.items():
        if entry.start != end:
            raise ValueError(
                f"{path}: not a usable safetensors file (tensor '{name}' is not contiguous with the previous one)"
            )
        end += entry.size
    if end != available + 8:
        raise ValueError(
            f"{path}: not a usable safetensors file, or cut short ({available + 8} bytes, its header requires {end})"
        )
    return TensorHeader(entries, metadata)


def _entry(path: Path, name: str, entry: Any, base: int) -> TensorEntry:
    where = f"{path}: not a usable safetensors file (tensor '{name}'"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} must have dtype, shape and data_offsets)")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > 64 or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{where} has a shape or offsets that are not non-negative integers)")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{where} has the dtype {str(entry['dtype'])[:20]!r}; known are {', '.join(_DTYPES)})")
    size = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != size:
        raise ValueError(f"{where} takes {offsets[1] - offsets[0]} bytes, its shape {size})")
    return TensorEntry(dtype, tuple(shape), base + offsets[0], size)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _read_tensor(path: Path, file: BinaryIO, entry: TensorEntry, digest: Any) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    if not entry.size:
        return tensor
    place = tensor.reshape(-1).view(torch.uint8).numpy().data
    file.seek(entry.start)
    for first in range(0, entry.size, BLOCK_BYTES):
        block = place[first : first + BLOCK_BYTES]
        if file.readinto(block) != len(block):  # type: ignore[attr-defined]
            raise DamagedFile(f"{path}: was truncated while it was read; {COPY_AGAIN}")
        if digest is not None:
            digest.update(block)
    return tensor


def _content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the metadata and every tensor (name, dtype, shape, bytes)."""
    described = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in sorted(tensors.items())]
    digest = hashlib.sha256(json.dumps([dict(sorted(metadata.items())), described]).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shape(entry: Any, name: str, path: Path) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{path}: not a usable safetensors file (a tensor without a shape: '{name}')")
    return tuple(shape)
