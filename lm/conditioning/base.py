"""What a condition is told of the model it belongs to."""

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
    """Codes of each codebook that it reads."""
    input: Callable[[Tensor], Tensor] | None = None
    """Its own input of codes, ids [B, K, L] -> [B, L, D]. The weights are the model's, not the condition's."""
    code_vectors: Tensor | None = None
    """[K, V, width] of the tokenizer, where the config asks for them."""
