"""The properties of a model that its conditions need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ConditionContext:
    """The model around its conditions."""

    width: int
    """D."""
    heads: int
    """H."""
    rope_base: float = 10000.0
    cardinalities: tuple[int, ...] = ()
    """Number of codes of each codebook that it reads."""
    input: Callable[[Tensor], Tensor] | None = None
    """The model's input embedding, ids [B, K, L] -> [B, L, D]. Its weights belong to the model, not the condition."""
    code_vectors: Tensor | None = None
    """[K, V, width] of the tokenizer, if the config needs them."""
