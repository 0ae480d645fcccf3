"""The tensors a model has, before there is one: loaders check a file by them, and paper-size configs are counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from ...configs.schema import ConfigError
from ...tokenize.layers.parameter_budget import Budget
from ...tokenize.spec import TokenSpec
from ..models.causal import LMConfig, TokenLM


def parameter_shapes(
    config: LMConfig,
    spec: TokenSpec,
    code_width: int | None = None,
    make: Callable[..., TokenLM] = TokenLM,
    budget: Budget | None = None,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors a model of this config holds, found without allocating them.

    Args:
        make: called as TokenLM.
        budget: of the file that the weights are in; BudgetError where the config asks for far more.
    """
    vectors: Any = None
    if config.needs_code_vectors:
        if code_width is None:
            raise ConfigError("lm.input or lm.head 'codes' needs the width of the tokenizer's code vectors")
        vectors = torch.zeros(1, 1, code_width, device="cpu").expand(
            spec.num_codebooks, max(spec.cardinalities), code_width
        )
    with torch.device("meta"), budget or nullcontext():
        model = make(config, spec, vectors)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
