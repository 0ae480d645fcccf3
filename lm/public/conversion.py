"""Read and write language models of public checkpoints by a tensor map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...configs.files import read_safetensors
from ...configs.tensor_checks import check_tensors, header_shapes
from ...tokenize.public.tensor_map import TensorMap
from ...tokenize.spec import TokenSpec
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import StorageName, lm_of_tensors
from ..config import LMConfig
from ..models.causal import TokenLM
from ..patterns.layouts import DelayConfig


def read_lm(
    folder: Path,
    where: dict[str, Path],
    tensor_map: TensorMap,
    config: LMConfig,
    spec: TokenSpec,
    ignored: Sequence[str] = (),
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> TokenLM:
    """Build a model from the tensors of a public checkpoint.

    Args:
        where: the file of each tensor.
        ignored: name prefixes of tensors that are not part of the model.
    Raises:
        WeightsError: tensors are missing, left over, or of another shape than the config requires.
    """
    ours = parameter_shapes(config, spec)
    assert ours.keys() == tensor_map.keys(), ours.keys() ^ tensor_map.keys()
    shapes = {name: shape for file in set(where.values()) for name, shape in header_shapes(file).items()}
    found = {name: shape for name, shape in shapes.items() if not name.startswith(tuple(ignored))}
    expected = {
        source.name: (source.rows, *ours[name][1:])
        for name, sources in tensor_map.items()
        for source in sources
        if source.name
    }
    check_tensors(found, expected, folder)
    theirs: dict[str, Tensor] = {}
    for file in sorted(set(where.values())):
        theirs |= read_safetensors(file, wanted=expected.__contains__)[0]
    tensors = {}
    for name, sources in tensor_map.items():
        read = [theirs.pop(source.name) if source.name else None for source in sources]  # each occurs once, then freed
        like = next(tensor for tensor in read if tensor is not None)
        filled = [
            like.new_zeros(source.rows, *like.shape[1:]) if tensor is None else tensor
            for source, tensor in zip(sources, read, strict=True)
        ]
        tensors[name] = torch.cat(filled) if len(filled) > 1 else like
    lm = lm_of_tensors(config, spec, tensors, device, dtype, folder)
    assert isinstance(lm, TokenLM)
    return lm


def check_layout(layout: str, found: LMConfig, expected: LMConfig, num_codebooks: int) -> None:
    """Raise ValueError unless a model equals the one that the layout would be read back as; names the first setting
    that differs. Machine-dependent settings are ignored, and unset ones are resolved first."""
    ours, theirs = _resolved(found, num_codebooks), _resolved(expected, num_codebooks)
    for name in LMConfig.model_fields:
        if name != "attention" and getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"{layout}'s layout does not support this lm.{name}: found {getattr(ours, name)!r}, it needs "
                f"{getattr(theirs, name)!r}"
            )


def _resolved(config: LMConfig, num_codebooks: int) -> LMConfig:
    fields: dict = {"ffn": config.num_ffn, "kv_heads": config.num_kv_heads}
    if isinstance(config.arrangement, DelayConfig) and config.arrangement.delays is None:
        fields["arrangement"] = config.arrangement.model_copy(update={"delays": tuple(range(num_codebooks))})
    return config.model_copy(update=fields)


def public_tensors(lm: TokenLM, tensor_map: TensorMap) -> dict[str, Tensor]:
    """The model's tensors under the names of the public checkpoint, on the CPU."""
    tensors = {}
    for name, tensor in lm.state_dict().items():
        parts = tensor.detach().cpu().split([source.rows for source in tensor_map[name]])
        tensors.update(
            {source.name: part.clone() for source, part in zip(tensor_map[name], parts, strict=True) if source.name}
        )
    return tensors
