"""Public checkpoints in their own layouts: every tensor of ours is some of theirs, one below the other.

A layout is a `TensorMap`, which serves both ways. What a checkpoint has besides (other models, tables that are
computed) is named by the start of its tensors' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...configs.files import read_json, read_safetensors
from ...configs.names import check_file_name
from ...lm.checkpoints.model_directory import StorageName, check_tensors, header_shapes, lm_of_tensors
from ...lm.checkpoints.parameter_shapes import parameter_shapes
from ...lm.models.causal import LMConfig, TokenLM
from ...lm.patterns.layouts import DelayConfig
from ..spec import TokenSpec


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


def read_lm(
    folder: Path,
    where: dict[str, Path],
    plan: TensorMap,
    config: LMConfig,
    spec: TokenSpec,
    ignored: Sequence[str] = (),
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> TokenLM:
    """Make a model of their tensors.

    Args:
        where: the file of each tensor.
        ignored: what the names of tensors begin with that are no part of the model.
    Raises:
        WeightsError: their tensors are missing, left over, or of another shape than the config says.
    """
    ours = parameter_shapes(config, spec)
    assert ours.keys() == plan.keys(), ours.keys() ^ plan.keys()
    shapes = {name: shape for file in set(where.values()) for name, shape in header_shapes(file).items()}
    found = {name: shape for name, shape in shapes.items() if not name.startswith(tuple(ignored))}
    wanted = {
        piece.name: (piece.rows, *ours[name][1:]) for name, pieces in plan.items() for piece in pieces if piece.name
    }
    check_tensors(found, wanted, folder)
    theirs: dict[str, Tensor] = {}
    for file in sorted(set(where.values())):
        theirs |= read_safetensors(file, wanted=wanted.__contains__)[0]
    tensors = {}
    for name, pieces in plan.items():
        read = [theirs.pop(piece.name) if piece.name else None for piece in pieces]  # each is in one place, then freed
        like = next(tensor for tensor in read if tensor is not None)
        filled = [
            like.new_zeros(piece.rows, *like.shape[1:]) if tensor is None else tensor
            for piece, tensor in zip(pieces, read, strict=True)
        ]
        tensors[name] = torch.cat(filled) if len(filled) > 1 else like
    return lm_of_tensors(config, spec, tensors, device, dtype, folder)


def check_layout(layout: str, found: LMConfig, wanted: LMConfig, num_codebooks: int) -> None:
    """Raise ValueError unless a model is the one that a layout would be read back as; names the first setting that
    differs. Settings of machines do not matter, open settings are what they stand for."""
    ours, theirs = _spelled_out(found, num_codebooks), _spelled_out(wanted, num_codebooks)
    for name in LMConfig.model_fields:
        if name != "attention" and getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"{layout}'s layout cannot say lm.{name}: found {getattr(ours, name)!r}, it needs "
                f"{getattr(theirs, name)!r}"
            )


def _spelled_out(config: LMConfig, num_codebooks: int) -> LMConfig:
    said: dict = {"ffn": config.num_ffn, "kv_heads": config.num_kv_heads}
    if isinstance(config.arrangement, DelayConfig) and config.arrangement.delays is None:
        said["arrangement"] = config.arrangement.model_copy(update={"delays": tuple(range(num_codebooks))})
    return config.model_copy(update=said)


def their_tensors(lm: TokenLM, plan: TensorMap) -> dict[str, Tensor]:
    """The model's tensors under their names, on the CPU."""
    tensors = {}
    for name, tensor in lm.state_dict().items():
        parts = tensor.detach().cpu().split([piece.rows for piece in plan[name]])
        tensors.update({piece.name: part.clone() for piece, part in zip(plan[name], parts, strict=True) if piece.name})
    return tensors
