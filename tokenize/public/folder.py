"""A public checkpoint on disk: a folder, or one file of weights, with its config.json if there is one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ...configs.files import read_json
from .checkpoint import PICKLE_ENDINGS, Checkpoint, open_checkpoint, pickle_files

WEIGHTS_KEY = "transformers_weights"
"""Key of config.json that names the file of weights, or the index of the files."""
STRIDES = ("upsampling_ratios", "upsample_rates", "downsampling_ratios", "encoder_rates", "decoder_rates", "ratios")
"""Keys of the strides of a network."""
LIMIT = 1 << 20
"""Largest whole number of a config for which RANGES has no range."""
_HERTZ, _LAYERS, _STRIDE, _FRAMES = (1, 1_000_000), (1, 256), (1, 4096), (1, 65536)
RANGES = {
    **dict.fromkeys(("sampling_rate", "sample_rate", "input_sample_rate", "output_sample_rate"), _HERTZ),
    **dict.fromkeys(("num_residual_layers", "n_residual_layers", "num_hidden_layers", "num_layers"), _LAYERS),
    **dict.fromkeys(("num_lstm_layers", "lstm", "flatten_first", "empty_initial", "delays"), (0, 64)),
    "num_heads": (0, 4096),
    **dict.fromkeys(("bos_token_id", "codebook_eos_token_id"), (0, 1 << 20)),
    **dict.fromkeys((*STRIDES, "vq_strides", "attn_window_size"), _STRIDE),
    **dict.fromkeys(("dilation_growth_rate", "dilation_base"), (1, 64)),
    **dict.fromkeys(("sliding_window", "context", "chroma_length"), _FRAMES),
    **dict.fromkeys(("image_size", "downsample_size"), (1, 16384)),
}
"""Key of a public config -> smallest and largest whole number. What no tensor's shape confirms would else be believed,
and memory be taken for it."""
MOST_STRIDES = 16
MOST_SAMPLES = 1 << 20
"""Samples of a frame."""


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
        """The weights; raises as `open_checkpoint`. A folder with those of two libraries says in config.json which are
        transformers' (sesame/csm-1b)."""
        named = self.config.get(WEIGHTS_KEY)
        if named is not None and not isinstance(named, str):
            raise ValueError(f"{self.config_path}: {WEIGHTS_KEY} must be the name of a file, found {str(named)[:80]!r}")
        return open_checkpoint(self.path, named=named)

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
                null only where the default is None), and each float must be finite, each whole number in its range.
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
    return {key: _typed(held.get(key, default), default, key, f"{where}: {key}") for key, default in defaults.items()}


def check_number(value: Any, key: str, where: str) -> None:
    """Raise ValueError, which begins with `where`, for a number that no model has: see RANGES; floats are finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, found {value}")
    least, most = RANGES.get(key, (1, LIMIT))
    if type(value) is int and not least <= value <= most:
        raise ValueError(f"{where} must be from {least} to {most}, found {str(value)[:40]}")


def check_whole(value: Any, key: str, where: str) -> int:
    """A whole number in the range of its key; ValueError, which begins with `where`: it is none."""
    if type(value) is not int:
        raise ValueError(f"{where} must be a whole number, found {repr(value)[:80]}")
    check_number(value, key, where)
    return value


def check_strides(strides: list[int], where: str) -> None:
    """Raise ValueError, which begins with `where`, for strides that make frames of a length that no codec has."""
    if len(strides) > MOST_STRIDES or math.prod(strides) > MOST_SAMPLES:
        raise ValueError(
            f"{where} must be at most {MOST_STRIDES} strides with a product of at most {MOST_SAMPLES}, found "
            f"{str(strides)[:80]}"
        )


def has_pickles_alone(path: Path) -> bool:
    """Whether a path is a pickle of weights, or a folder with such files and without config.json."""
    if path.is_file():
        return path.suffix in PICKLE_ENDINGS
    return path.is_dir() and not (path / "config.json").exists() and bool(pickle_files(path))


def _typed(value: Any, default: Any, key: str, where: str) -> Any:
    if isinstance(value, float) or type(default) is int:
        check_number(value, key, where)
    if default is None or (isinstance(default, float) and type(value) is int):
        return value
    if type(value) is not type(default):
        raise ValueError(f"{where} must be of type {type(default).__name__}, found {str(value)[:80]!r}")
    if isinstance(default, list) and default:
        entries: list[Any] = value  # pyright: ignore
        value = [_typed(one, default[0], key, f"{where}[{place}]") for place, one in enumerate(entries)]
        if key in STRIDES:
            check_strides(value, where)
    return value
