"""A public checkpoint on disk: a folder, or one file of weights, with its config.json if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ...configs.files import read_json
from .checkpoint import PICKLE_ENDINGS, Checkpoint, open_checkpoint, pickle_files


class PublicFolder:
    """What a user names: a folder with config.json and weights, or only weights. Both are read when asked for."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, empty if there is none. ValueError: it is not a JSON object."""
        path = self.config_path
        if not self.path.is_dir() or not path.is_file():
            return {}
        described = read_json(path)
        if not isinstance(described, dict):
            raise ValueError(f"{path}: is not a JSON object")
        return described

    @property
    def config_path(self) -> Path:
        """Path of config.json, for messages."""
        return self.path / "config.json"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The weights; raises as `open_checkpoint`."""
        return open_checkpoint(self.path)

    def holding(self, tensor: str) -> Checkpoint | None:
        """The weights with a tensor of this name: the folder's, or of several files beside each other the first; None
        if there are none, or none that can be read."""
        return next((found for found in self._each() if tensor in found.shapes), None)

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors: of the weights, or of several files beside each other those of all."""
        held = list(self._each())
        whole = self._opened.get(self.path)
        return frozenset().union(*(one.shapes for one in ([whole] if whole is not None else held)))

    def _each(self) -> Iterator[Checkpoint]:
        paths = [self.path]
        if self.path.is_dir():
            endings = (*PICKLE_ENDINGS, ".safetensors")
            paths += sorted(file for file in self.path.iterdir() if file.suffix in endings and file.is_file())
        for path in paths:
            if path not in self._opened:
                try:
                    self._opened[path] = self.checkpoint if path == self.path else open_checkpoint(path)
                except (ValueError, OSError):
                    self._opened[path] = None
            found = self._opened[path]
            if found is not None:
                yield found

    @cached_property
    def _opened(self) -> dict[Path, Checkpoint | None]:
        return {}

    def values(self, defaults: dict[str, Any], within: str | None = None) -> dict[str, Any]:
        """Settings of config.json with the defaults of the library's own class for absent keys.

        Args:
            defaults: key -> default; each value read must have the type of its default (int for float is accepted,
                null only where the default is None).
            within: key of a nested config, such as audio_encoder.
        Raises:
            ValueError: a value of another type; the message names key, value and type.
        """
        held = self.config if within is None else self.config.get(within)
        where = str(self.config_path) if within is None else f"{self.config_path}: {within}"
        return typed_values(held, defaults, where)


def typed_values(held: Any, defaults: dict[str, Any], where: str) -> dict[str, Any]:
    """Settings `held` with defaults for absent keys; arguments and errors as PublicFolder.values."""
    if not isinstance(held, dict):
        raise ValueError(f"{where}: is missing")
    return {key: _typed(held.get(key, default), default, f"{where}: {key}") for key, default in defaults.items()}


def has_pickles_alone(path: Path) -> bool:
    """Whether a path is a pickle of weights, or a folder with such files and without config.json."""
    if path.is_file():
        return path.suffix in PICKLE_ENDINGS
    return path.is_dir() and not (path / "config.json").exists() and bool(pickle_files(path))


def _typed(value: Any, default: Any, where: str) -> Any:
    if default is None or (isinstance(default, float) and type(value) is int):
        return value
    if type(value) is not type(default):
        raise ValueError(f"{where} must be of type {type(default).__name__}, found {str(value)[:80]!r}")
    if isinstance(default, list) and default:
        return [_typed(one, default[0], f"{where}[{place}]") for place, one in enumerate(value)]
    return value
