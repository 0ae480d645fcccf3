"""Code vectors from a safetensors file, read when a quantizer is built; a saved tokenizer stores its own copy."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ....configs.files import read_safetensors
from ....configs.schema import Config, ConfigError


class VectorFile(Config):
    """A matrix in a safetensors file."""

    path: str
    """Path of the file, relative to the working directory."""
    tensor: str
    """Name of the matrix [rows, columns] in the file."""


def read_vectors(file: VectorFile, rows: int | None, columns: int, where: str) -> Tensor:
    """Read the matrix [rows, columns] as float32; `rows` None: any number.

    Raises:
        ConfigError: missing file or tensor, wrong shape, or non-finite values; the message starts with `where`.
    """
    if not Path(file.path).is_file():
        raise ConfigError(f"{where}.path: {file.path}: no such file")
    tensors, _ = read_safetensors(Path(file.path))
    if file.tensor not in tensors:
        raise ConfigError(
            f"{where}.tensor: {file.path} has no tensor '{file.tensor}'; it has: {', '.join(sorted(tensors))}"
        )
    found = tensors[file.tensor].float()
    if found.dim() != 2 or found.shape[1] != columns or rows not in (None, found.shape[0]):
        wanted = f"[{'any' if rows is None else rows}, {columns}]"
        raise ConfigError(f"{where}.tensor: '{file.tensor}' of {file.path} is {list(found.shape)}, expected {wanted}")
    if not bool(found.isfinite().all()):
        raise ConfigError(f"{where}.tensor: '{file.tensor}' of {file.path} holds NaN or infinite numbers")
    return found
