"""Files that are either whole or absent when written, and checked before they are used when read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 100_000
MAX_JSON_BYTES = 256 << 20
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,512}")


def write_atomic(path: str | Path, content: bytes | Callable[[Path], Any], durable: bool = True) -> None:
    """Write a file so that a kill at any moment leaves the old file or the whole new one.

    Args:
        path: file to write; its folder is made when missing.
        content: the bytes, or a function that writes them to the temporary path it is given.
        durable: wait for the disk, so that a power cut leaves one of the two as well; slow for many files.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content)
        os.chmod(part, 0o644)  # mkstemp and safetensors both write 0600, which a shared folder cannot read
        if durable:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if durable:
        fsync_dir(path.parent)


def fsync_dir(path: str | Path) -> None:
    """Make a folder's own entries (names, renames) durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically, indented, keys in the order given; NaN and infinity are refused with ValueError."""
    write_atomic(path, (json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read JSON; ValueError names the file when it is too large or not JSON."""
    path = Path(path)
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path}: {size} bytes of JSON, the limit is {max_bytes}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and metadata atomically; the same content gives the same bytes.

    safetensors by itself does not fsync, writes for the owner only, and puts metadata in another order each time.
    """

    assert tensors, "safetensors 0.8 writes a broken header without tensors"

    def write(part: Path) -> None:
        safetensors.torch.save_file(dict(tensors), part, dict(metadata) if metadata else None)
        if metadata and len(metadata) > 1:
            _sort_metadata(part)

    write_atomic(path, write)


def _sort_metadata(path: Path) -> None:
    """Rewrite a safetensors header in place with its metadata sorted; nothing else moves."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same JSON in another order must fit"
        file.seek(8)
        file.write(text.ljust(size))


def read_safetensors(
    path: str | Path, max_header: int = MAX_HEADER_BYTES, max_tensors: int = MAX_TENSORS
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file.

    The header is checked first: the format itself allows headers that take seconds and gigabytes to parse, a name that
    occurs twice, and names such as "../../etc/x".

    Raises:
        FileNotFoundError: no such file. ValueError: anything wrong with its content, in one line that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    metadata = check_safetensors_header(path, max_header, max_tensors)
    try:
        return safetensors.torch.load_file(path), metadata
    except Exception as error:  # SafetensorError, but also TypeError for a dtype this torch does not know
        raise ValueError(f"{path}: not a usable safetensors file ({_one_line(error)})") from None


def check_safetensors_header(
    path: str | Path, max_header: int = MAX_HEADER_BYTES, max_tensors: int = MAX_TENSORS
) -> dict[str, str]:
    """Check a safetensors header and return the metadata; raises as `read_safetensors`."""
    path = Path(path)
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        available = path.stat().st_size - 8
        if available < 2 or size > available:
            raise ValueError(f"{path}: not a safetensors file, or cut short ({available + 8} bytes)")
        if size > max_header:
            raise ValueError(f"{path}: a safetensors header of {size} bytes, the limit is {max_header}")
        try:
            header = json.loads(file.read(size), object_pairs_hook=_refuse_duplicates)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a safetensors file ({_one_line(error)})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not a safetensors file (the header is no mapping)")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path}: metadata must map names to strings")
    if len(header) > max_tensors:
        raise ValueError(f"{path}: {len(header)} tensors, the limit is {max_tensors}")
    for name in header:
        if not _TENSOR_NAME.fullmatch(name):
            raise ValueError(f"{path}: {name[:80]!r} is not a tensor name (letters, digits, dot, dash, underscore)")
    return metadata


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
