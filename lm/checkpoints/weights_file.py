"""Weights of a language model: model to tensors of a safetensors file, and back, with checks of names and shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...configs.files import read_header, read_safetensors
from ...configs.tensor_checks import WeightsError, check_tensors
from ...tokenize.layers.parameter_budget import Budget
from ...tokenize.layers.unfilled import Unfilled
from ...tokenize.spec import TokenSpec
from ..config import LMConfig
from ..models.base import LanguageModel
from ..models.causal import TokenLM
from ..models.transformer_lm import TransformerLM
from ..quantization.packed_linear import WeightsName, pack_
from .parameter_shapes import parameter_shapes

StorageName = Literal["float32", "bfloat16", "float16"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_dtype(dtype: StorageName | torch.dtype) -> torch.dtype:
    """The dtype of a name, or the dtype itself; ValueError: it is none in which weights are stored."""
    found = DTYPES.get(dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be {', '.join(DTYPES)} or a floating point type of torch, found {dtype!r}")
    return found


def tensors_of(lm: LanguageModel, dtype: StorageName) -> dict[str, Tensor]:
    """The tensors to be stored; ValueError for a weight that `dtype` cannot represent."""
    return {name: _stored(name, tensor, dtype) for name, tensor in lm.state_dict().items()}


def read_weights(
    path: Path,
    config: LMConfig,
    spec: TokenSpec,
    *,
    sha256: Mapping[str, str],
    device: torch.device | str,
    dtype: StorageName | torch.dtype,
    weights: WeightsName | None = None,
    vectors: Tensor | None = None,
    make: Callable[..., TransformerLM] = TokenLM,
) -> TransformerLM:
    """The model of one file. sha256: hashes of the files by name, if known; make: called like TokenLM."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the model directory is incomplete, copy it again")
    header = read_header(path)
    code_width = None if vectors is None else vectors.shape[-1]
    expected = parameter_shapes(config, spec, code_width, make, Budget(header.tensors, path, on_meta=True))
    check_tensors({name: entry.shape for name, entry in header.tensors.items()}, expected, path)
    tensors, _ = read_safetensors(path, sha256=sha256.get(path.name))
    lm = lm_of_tensors(config, spec, tensors, device, dtype, path, vectors, make)
    return lm if weights is None else pack_(lm, weights)


def lm_of_tensors(
    config: LMConfig,
    spec: TokenSpec,
    tensors: dict[str, Tensor],
    device: torch.device | str,
    dtype: StorageName | torch.dtype,
    path: Path,
    vectors: Tensor | None = None,
    make: Callable[..., TransformerLM] = TokenLM,
) -> TransformerLM:
    """Build a model in eval mode from tensors whose names and shapes were checked; errors name the file at `path`."""
    target = check_dtype(dtype)
    # Built on the meta device, then given the file's tensors: nothing is initialized in vain.
    with torch.device("meta"), Unfilled():
        lm = make(config, spec, vectors)
    lm.load_state_dict(
        {name: _readable(tensor, name, path).to(device, target) for name, tensor in tensors.items()}, assign=True
    )
    lm.requires_grad_(True)
    return lm.to(device).eval()


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and values of weights, in float32: the same however they are stored, but for the
    rounding of their storage."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def _stored(name: str, tensor: Tensor, dtype: StorageName) -> Tensor:
    stored = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
    if not bool(stored.isfinite().all()):
        raise ValueError(
            f"tensor '{name}' is not finite in {dtype}; check the training loss, or export with another dtype"
        )
    return stored


def _readable(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        raise WeightsError(f"{path}: tensor '{name}' is {tensor.dtype}, expected floating point")
    return tensor
