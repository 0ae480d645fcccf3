"""Code vectors from a safetensors file, read when a quantizer is made; a saved tokenizer has them in its own file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

from ...configs.files import read_safetensors
from ...configs.schema import Config, ConfigError

_reading = ContextVar("reading", default=True)


class VectorFile(Config):
    """A matrix in a safetensors file."""

    path: str
    """The file, seen from the folder the command runs in."""
    tensor: str
    """Name of the matrix [rows, columns] in it."""


@contextmanager
def without_files() -> Iterator[None]:
    """In here `read_vectors` gives zeros: the state of a saved quantizer comes from elsewhere."""
    token = _reading.set(False)
    try:
        yield
    finally:
        _reading.reset(token)


def files_are_read() -> bool:
    """Whether `read_vectors` reads: not inside `without_files`."""
    return _reading.get()


def read_vectors(file: VectorFile, rows: int | None, columns: int, where: str) -> Tensor:
    """The matrix [rows, columns] as float32; `rows` None: any number (zeros then have one row).

    Raises:
        ConfigError: no such file or tensor, another shape, or numbers that are not finite; begins with `where`.
    """
    if not files_are_read():
        return torch.zeros(rows or 1, columns)
    if not Path(file.path).is_file():
        raise ConfigError(f"{where}.path: {file.path}: no such file")
    tensors, _ = read_safetensors(Path(file.path))
    if file.tensor not in tensors:
        raise ConfigError(
            f"{where}.tensor: {file.path} has no tensor '{file.tensor}', but: {', '.join(sorted(tensors))}"
        )
    found = tensors[file.tensor].float()
    if found.dim() != 2 or found.shape[1] != columns or rows not in (None, found.shape[0]):
        wanted = f"[{'any' if rows is None else rows}, {columns}]"
        raise ConfigError(f"{where}.tensor: '{file.tensor}' of {file.path} is {list(found.shape)}, wanted {wanted}")
    if not bool(found.isfinite().all()):
        raise ConfigError(f"{where}.tensor: '{file.tensor}' of {file.path} holds NaN or infinite numbers")
    return found
