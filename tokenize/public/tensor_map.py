"""Public checkpoints in their own layouts: every tensor of ours is some of theirs, one below the other.

A layout is a `TensorMap`, which serves both ways. What a checkpoint has besides (other models, tables that are
computed) is named by the start of its tensors' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...configs.files import read_json
from ...configs.names import check_file_name
from ...configs.tensor_checks import header_shapes


@dataclass(frozen=True)
class SourceRows:
    """Some rows of one of our tensors."""

    name: str | None
    """Their tensor; None: rows that they do not have, zero in our model."""
    rows: int


TensorMap = dict[str, tuple[SourceRows, ...]]
"""Our tensor's name -> its pieces from the first row to the last."""


def equal(names: Sequence[str], shape: Sequence[int]) -> tuple[SourceRows, ...]:
    """Pieces of as many rows each."""
    return tuple(SourceRows(name, shape[0] // len(names)) for name in names)


def find_weights(folder: Path) -> dict[str, Path]:
    """The file of each tensor of model.safetensors, or of the files that model.safetensors.index.json lists.

    Raises:
        FileNotFoundError: neither is there, or a listed file is not. ValueError: only pickled weights are there.
    """
    if (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif (folder / "model.safetensors.index.json").is_file():
        index = read_json(folder / "model.safetensors.index.json")
        listed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise ValueError(f"{folder}/model.safetensors.index.json: has no weight_map of names to files")
        files = sorted(set(listed.values()))
        for file in files:
            check_file_name(file, f"{folder}/model.safetensors.index.json")
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder / file}: no such file; the checkpoint is incomplete, copy it again")
    else:
        pickled = sorted(path.name for end in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{end}"))
        if pickled:
            raise ValueError(
                f"{folder}: {pickled[0]} is a pickle, which can run any program when it is read, so it is not loaded; "
                "write model.safetensors once, where you trust the file, with the library that made it "
                "(transformers: model.save_pretrained(DIR); else safetensors.torch.save_file)"
            )
        raise FileNotFoundError(f"{folder}: no weights here (model.safetensors is missing)")
    where: dict[str, Path] = {}
    for file in files:
        for name in header_shapes(folder / file):
            if name in where:
                raise ValueError(f"{folder / file}: tensor '{name}' is in {where[name].name} as well")
            where[name] = folder / file
    return where
