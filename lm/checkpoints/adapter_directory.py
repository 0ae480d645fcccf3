"""The adapter directory: low-rank changes of a model (LoRA), without the model.

    adapter.json           the changes' config, the fingerprint of the base model's weights, a SHA-256 of itself
    adapter.safetensors    the changes, and the weights that learned as a whole, in float32
    README.md              what it is of

Written by `tessera export RUN --adapter`, read by `tessera.load(MODEL, adapter=DIR)`. No file is pickled. The weights
of the model are compared with the fingerprint, so an adapter is never added to another model.
Source: LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from ...configs.files import (
    DamagedFile,
    read_header,
    read_safetensors,
    read_sealed_json,
    sha256_file,
    write_atomic,
    write_safetensors,
    write_sealed_json,
)
from ...configs.module_names import fits_any
from ...configs.recognize import describe_wrong
from ...configs.schema import Config, check_config
from ...configs.tensor_checks import check_tensors
from ..layers.lora import LoRAConfig, add_lora_, is_lora, merge_lora_
from ..models.transformer_lm import TransformerLM
from ..quantization.packed_linear import WeightsName, check_weights, pack_
from .model_directory import LoadedModel, load_model
from .weights_file import StorageName, check_dtype, weights_fingerprint

ADAPTER_FILE = "adapter.json"
TENSORS_FILE = "adapter.safetensors"
SHA256 = r"^[0-9a-f]{64}$"


class AdapterFile(Config):
    """adapter.json."""

    format: Literal["tessera-adapter"] = "tessera-adapter"
    version: Literal[1] = 1
    base: str = Field(pattern=SHA256)
    """SHA-256 of the base model's weights (`weights_fingerprint`)."""
    base_name: str = Field(max_length=1000)
    """How the base model was named in the training, for messages."""
    lora: LoRAConfig
    bytes: NonNegativeInt
    """Size of adapter.safetensors."""
    tensors: str = Field(pattern=SHA256)
    """SHA-256 of adapter.safetensors."""


def save_adapter(
    folder: str | Path, lm: TransformerLM, lora: LoRAConfig, base: str, base_name: str, card: str = ""
) -> None:
    """Write an adapter directory; adapter.json comes last.

    Args:
        lm: with the low-rank changes of `lora`, not merged.
        base: fingerprint of the base model's weights. base_name: how it is called.
        card: text of README.md.
    Raises:
        ValueError: a weight is not finite.
    """
    folder = Path(folder)
    own = dict(lm.named_parameters())
    tensors = {
        name: parameter.detach().to("cpu", torch.float32).contiguous()
        for name, parameter in own.items()
        if is_adapted(name, lora)
    }
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"tensor '{name}' is not finite; check the training loss")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_FILE).unlink(missing_ok=True)
    path = folder / TENSORS_FILE
    write_safetensors(path, tensors, {"format": "tessera-adapter"})
    write_atomic(folder / "README.md", card.encode())
    described = AdapterFile(
        base=base, base_name=base_name, lora=lora, bytes=path.stat().st_size, tensors=sha256_file(path)
    )
    write_sealed_json(folder / ADAPTER_FILE, described.model_dump(mode="json"))


def is_adapted(name: str, lora: LoRAConfig) -> bool:
    """Whether a parameter of a model with low-rank changes is in its adapter."""
    return is_lora(name) or fits_any(name, lora.train)


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read and check adapter.json.

    Raises:
        FileNotFoundError: there is no adapter. ValueError: the file is damaged, or of another version.
    """
    path = Path(folder) / ADAPTER_FILE
    if not path.is_file():
        raise FileNotFoundError(
            describe_wrong(folder, "an adapter")
            or f"{folder}: no adapter here ({ADAPTER_FILE} is missing); write one with: tessera export RUN --adapter"
        )
    return check_config(read_sealed_json(path), AdapterFile, str(path))


def apply_adapter_(lm: TransformerLM, folder: str | Path, where: str = "this model") -> TransformerLM:
    """Merge an adapter into its base model, in place.

    Args:
        lm: the base model in float32, as loaded. where: how it is called, for messages.
    Raises:
        FileNotFoundError: there is no adapter. ValueError: it is damaged, or changes another model.
    """
    folder = Path(folder)
    described = read_adapter(folder)
    found = weights_fingerprint(lm.state_dict())
    if found != described.base:
        raise ValueError(
            f"{folder}: this adapter changes the model '{described.base_name}' ({described.base[:12]}), {where} is "
            f"another one ({found[:12]}); load it with the model that it was trained from"
        )
    path = folder / TENSORS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the adapter is incomplete, copy it again")
    if path.stat().st_size != described.bytes:
        raise DamagedFile(
            f"{path}: has {path.stat().st_size} bytes, {ADAPTER_FILE} says {described.bytes}; copy it again"
        )
    with torch.random.fork_rng(devices=[]):
        add_lora_(lm, described.lora, str(folder / ADAPTER_FILE))
    wanted = {name: parameter for name, parameter in lm.named_parameters() if is_adapted(name, described.lora)}
    shapes = {name: tuple(parameter.shape) for name, parameter in wanted.items()}
    check_tensors({name: entry.shape for name, entry in read_header(path).tensors.items()}, shapes, path)
    tensors, _ = read_safetensors(path, sha256=described.tensors)
    _copy_(wanted, tensors)
    return merge_lora_(lm)


def load_with_adapter(
    folder: str | Path,
    adapter: str | Path,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
    weights: WeightsName | None = None,
) -> LoadedModel:
    """`load_model`, with an adapter merged in float32 before the weights are converted.

    Raises:
        ValueError: also for a model of several stages. The rest as `load_model` and `apply_adapter_`.
    """
    if weights is not None:
        check_weights(weights)
    read_adapter(adapter)
    loaded = load_model(folder)
    if not isinstance(loaded.lm, TransformerLM):
        raise ValueError(f"{adapter}: an adapter changes a model of one stage, {folder} has several")
    lm = apply_adapter_(loaded.lm, adapter, str(folder))
    lm = lm.to(device, check_dtype(dtype)).eval()
    lm = lm if weights is None else pack_(lm, weights)
    return replace(loaded, lm=lm, tokenizer=loaded.tokenizer.to(device))


@torch.no_grad()
def _copy_(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
