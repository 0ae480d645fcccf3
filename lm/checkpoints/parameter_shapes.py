"""The tensors of a model without building it: used to check files before loading and to count paper-size configs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from ...configs.schema import ConfigError
from ...tokenize.layers.parameter_budget import Budget
from ...tokenize.layers.unfilled import Unfilled
from ...tokenize.spec import TokenSpec
from ..config import LMConfig
from ..models.causal import TokenLM
from ..models.transformer_lm import TransformerLM


def parameter_shapes(
    config: LMConfig,
    spec: TokenSpec,
    code_width: int | None = None,
    make: Callable[..., TransformerLM] = TokenLM,
    budget: Budget | None = None,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a model with this config, without allocating them.

    Args:
        make: called like TokenLM.
        budget: of the file with the weights; BudgetError if the config requires far more.
    """
    vectors: Any = None
    if config.needs_code_vectors:
        if code_width is None:
            raise ConfigError("lm.input or lm.head 'codes' needs the width of the tokenizer's code vectors")
        vectors = torch.zeros(1, 1, code_width, device="cpu").expand(
            spec.num_codebooks, max(spec.cardinalities), code_width
        )
    with torch.device("meta"), Unfilled(), budget or nullcontext():
        model = make(config, spec, vectors)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
