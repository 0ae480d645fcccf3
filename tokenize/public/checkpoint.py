"""The tensors of a public checkpoint, in safetensors files or in pickles of tensors.

Pickles (`.pt`, `.pth`, `.bin`, `.ckpt`, `.th`) are read by torch's restricted unpickler, which builds tensors and plain
containers only: a file that asks for anything else is refused before anything of it runs. The released checkpoints of
several systems exist as pickles only.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configs.files import map_file, mapped_tensor, read_header, read_json, write_atomic
from ...configs.names import check_file_name
from ...configs.printable import one_line
from ...configs.tensor_checks import check_tensors
from .tensor_map import Shape, TensorMap

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".th")
STATE_KEYS = ("state_dict", "best_state", "model", "module", "ema")
"""Names under which training scripts store the weights, best first."""
INDEX = "model.safetensors.index.json"
CALLBACKS = tuple(
    f"{package}.callbacks.{name}"
    for package in ("pytorch_lightning", "lightning.pytorch")
    for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping", "lr_monitor.LearningRateMonitor")
)
"""Classes that Lightning used to store as keys of a dictionary. They are not imported, `Callback` takes their place."""


class Callback:
    """Stands for a class of CALLBACKS in a pickle; it does nothing."""


class Checkpoint:
    """Names, shapes and tensors of a checkpoint, whose files are mapped into memory: what is not used is not read."""

    def __init__(self, path: Path, where: Mapping[str, Path], held: Mapping[str, Tensor], described: Any = None):
        self.path = path
        """The folder or file, for messages."""
        self._where, self._held = where, held
        self.described = described
        """What a pickle holds beside the tensors."""
        self._headers = {file: read_header(file) for file in sorted(set(where.values()))}
        self._mapped: dict[Path, Tensor] = {}
        self.shapes: dict[str, Shape] = {name: self._headers[file].tensors[name].shape for name, file in where.items()}
        """Shapes of all tensors by name."""
        self.shapes |= {name: tuple(tensor.shape) for name, tensor in held.items()}

    def within(self, prefix: str) -> Checkpoint:
        """The part whose tensors have names with a prefix, as one model of several in the same files."""
        part = copy(self)
        part.shapes = {name: shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return part

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors with these names; names that the checkpoint does not have are left out."""
        wanted = list(names)
        stored = {name: self._stored(name, self._where[name]) for name in wanted if name in self._where}
        return {name: self._held[name] for name in wanted if name in self._held} | stored

    def _stored(self, name: str, file: Path) -> Tensor:
        if file not in self._mapped:
            self._mapped[file] = map_file(file, self._headers[file])
        return mapped_tensor(self._mapped[file], self._headers[file].tensors[name])

    def read(self, tensor_map: TensorMap, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Our tensors by a map, for a model with these shapes.

        Raises:
            WeightsError: the checkpoint lacks tensors, has others, or has them in another shape; the message names the
                first and says how many there are.
        """
        self.check(tensor_map, shapes)
        return tensor_map.read(shapes, self.tensors)

    def check(self, tensor_map: TensorMap, shapes: Mapping[str, Shape]) -> None:
        """Compare names and shapes without reading a tensor; raises as `read`."""
        wanted = tensor_map.expected(shapes)
        found = {name: shape for name, shape in self.shapes.items() if name in wanted or not tensor_map.is_known(name)}
        check_tensors(found, wanted, self.path)


def open_checkpoint(path: Path, also: Sequence[Path] = (), named: str | None = None) -> Checkpoint:
    """Open a folder with weights in safetensors, sharded or not, or else with one pickle; or one such file.

    Args:
        also: further safetensors files of the same model.
        named: the file in the folder, or the index of the files, instead of the usual names.
    Raises:
        FileNotFoundError: there are no weights, or a listed file is missing. ValueError: unusable files, several
            pickles of which one has to be chosen, or a pickle of anything but tensors and plain containers.
    """
    if path.is_file():
        if path.suffix == ".safetensors":
            return Checkpoint(path, dict.fromkeys(read_header(path).tensors, path), {})
        return _of_pickle(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    files = _safetensors_files(path, named)
    if files:
        return Checkpoint(path, _places([*files, *also]), {})
    pickles = pickle_files(path)
    if not pickles:
        raise FileNotFoundError(f"{path}: no weights here (model.safetensors is missing)")
    if len(pickles) > 1:
        names = ", ".join(file.name for file in pickles[:5])
        raise ValueError(f"{path}: several files may hold the weights; name one of them: {names}")
    return _of_pickle(pickles[0])


def pickle_files(folder: Path) -> list[Path]:
    """Files in a folder that may be pickled weights."""
    return sorted(file for file in folder.iterdir() if file.suffix in PICKLE_ENDINGS and file.is_file())


def _safetensors_files(folder: Path, named: str | None) -> list[Path]:
    if named is not None:
        check_file_name(named, str(folder / "config.json"))
        if not (folder / named).is_file():
            raise FileNotFoundError(f"{folder / named}: no such file; the checkpoint is incomplete, copy it again")
        return _indexed(folder, named) if named.endswith(".json") else [folder / named]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    return _indexed(folder, INDEX) if (folder / INDEX).is_file() else []


def _indexed(folder: Path, index_name: str) -> list[Path]:
    """The files that an index lists."""
    index = read_json(folder / index_name)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise ValueError(f"{folder / index_name}: has no weight_map of names to files")
    names = sorted(set(listed.values()))
    for name in names:
        check_file_name(name, str(folder / index_name))
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file; the checkpoint is incomplete, copy it again")
    return [folder / name for name in names]


def _places(files: list[Path]) -> dict[str, Path]:
    where: dict[str, Path] = {}
    for file in files:
        for name in read_header(file).tensors:
            if name in where:
                raise ValueError(f"{file}: tensor '{name}' is in {where[name].name} as well")
            where[name] = file
    return where


def _of_pickle(path: Path) -> Checkpoint:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors")
    state = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), dict)), content)
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: holds no tensors by name")
    for name, tensor in tensors.items():
        if tensor.is_sparse or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: tensor '{one_line(name)[:80]}' is no dense tensor (sparse, or expanded)")
    described = {key: value for key, value in content.items() if value is not state} if state is not content else None
    return Checkpoint(path, {}, tensors, described)


def write_pickle(path: Path, content: Any) -> None:
    """Write a file as `torch.save` does, of tensors and plain containers: the only format that some systems read."""
    write_atomic(path, lambda part: torch.save(content, part))


def read_pickle(path: Path) -> Any:
    """The content of a file written by `torch.save`: tensors, numbers, strings and containers of them.

    Raises:
        ValueError: reading the file would run code, which is refused, or it is damaged.
    """
    if zipfile.is_zipfile(path):  # torch never compresses; what is compressed could unpack to any size
        with zipfile.ZipFile(path) as file:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                raise ValueError(f"{path}: not a usable file of tensors (it is compressed)")
    try:
        # Namespace: the arguments that training scripts store beside the weights; it is a record without behavior.
        inert = [argparse.Namespace, *((Callback, name) for name in CALLBACKS)]
        with torch.serialization.safe_globals(inert), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # written before torch 1.6, in a format that cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise ValueError(f"{path}: not a usable file of tensors (damaged, or written by another program)") from None
        raise ValueError(
            f"{path}: this pickle asks for {asked[1][:100]}, more than tensors and plain containers, so it is not read "
            "and nothing of it was run; if you trust the file, convert it to safetensors with the library that wrote it"
        ) from None
    except (EOFError, LookupError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a usable file of tensors ({one_line(error)[:150]})") from None
