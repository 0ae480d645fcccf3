"""Mapping of public checkpoints to our layout: each of our tensors is a concatenation of theirs along the first axis.

A `TensorMap` works in both directions. Other content of a checkpoint (other models, computed tables) is identified by
name prefixes.
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
    """A block of rows of one of our tensors."""

    name: str | None
    """Source tensor in the checkpoint; None: rows missing there, which are zero in our model."""
    rows: int


TensorMap = dict[str, tuple[SourceRows, ...]]
"""Our tensor name -> its row blocks from first to last."""


def equal(names: Sequence[str], shape: Sequence[int]) -> tuple[SourceRows, ...]:
    """Row blocks of equal size, one per name."""
    return tuple(SourceRows(name, shape[0] // len(names)) for name in names)


def find_weights(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from model.safetensors or the files listed in model.safetensors.index.json.

    Raises:
        FileNotFoundError: neither exists, or a listed file is missing. ValueError: there are only pickled weights.
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
                f"{folder}: {pickled[0]} is a pickle, which can run arbitrary code, so it is not loaded; "
                "if you trust the file, convert it to model.safetensors with the library that wrote it "
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
