"""Read and write language models of public checkpoints by a tensor map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...tokenize.public.checkpoint import Checkpoint
from ...tokenize.public.survey import survey_part
from ...tokenize.public.tensor_map import TensorMap
from ...tokenize.spec import TokenSpec
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import StorageName, lm_of_tensors
from ..config import LMConfig
from ..models.causal import TokenLM
from ..patterns.layouts import DelayConfig


def read_lm(
    checkpoint: Checkpoint,
    tensor_map: TensorMap,
    config: LMConfig,
    spec: TokenSpec,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> TokenLM:
    """Build a model from the tensors of a public checkpoint.

    Raises:
        WeightsError: tensors are missing, left over, or of another shape than the config requires.
    """
    shapes = parameter_shapes(config, spec)
    survey_part(config, tensor_map, shapes, checkpoint, spec)
    tensors = checkpoint.read(tensor_map, shapes)
    lm = lm_of_tensors(config, spec, tensors, device, dtype, checkpoint.path)
    assert isinstance(lm, TokenLM)
    return lm


def check_codec(folder: str | Path, spec: TokenSpec, books: int, codes: int) -> None:
    """Raise ValueError unless a codec has as many codebooks and codes as a model in `folder`."""
    if spec.cardinalities != (codes,) * books:
        raise ValueError(
            f"{folder}: the model has {books} codebooks of {codes} codes, the tokenizer '{spec.name}' "
            f"{list(spec.cardinalities)}; pass the spec of the tokenizer it was trained with"
        )


def only_whole(layout: str, parts: str) -> Callable[..., None]:
    """`PublicLayout.save` of a layout that has no language model alone: a function that raises ValueError.

    parts: what it is always together with, for the message.
    """

    def save(*_: Any) -> None:
        raise ValueError(
            f"{layout}'s layout holds a language model together with {parts} only; convert the whole model directory"
        )

    return save


def check_layout(layout: str, found: LMConfig, expected: LMConfig, num_codebooks: int) -> None:
    """Raise ValueError unless a model equals the one that the layout would be read back as; names the first setting
    that differs. Machine-dependent settings are ignored, and unset ones are resolved first."""
    ours, theirs = _resolved(found, num_codebooks), _resolved(expected, num_codebooks)
    for name in type(theirs).model_fields:
        held = getattr(ours, name, None)
        if name != "attention" and held != getattr(theirs, name):
            raise ValueError(
                f"{layout}'s layout does not support this lm.{name}: found {held!r}, it needs {getattr(theirs, name)!r}"
            )


def _resolved(config: LMConfig, num_codebooks: int) -> LMConfig:
    config = config.explicit(num_codebooks)
    fields: dict = {"ffn": config.num_ffn, "kv_heads": config.num_kv_heads}
    if isinstance(config.arrangement, DelayConfig) and config.arrangement.delays is None:
        fields["arrangement"] = config.arrangement.model_copy(update={"delays": tuple(range(num_codebooks))})
    return config.model_copy(update=fields)
