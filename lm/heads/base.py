"""What every head implements, and what the model gives it.

A head maps the backbone's hidden state of a step to the ids of that step. It predicts sub-tokens
(lm/patterns/sub_tokens.py), which are usually the ids themselves, in sequential stages: later stages can be conditioned
on the choices of earlier ones. The parallel head has one stage with all codebooks, the depth head one per sub-token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..patterns.pattern import CodebookPattern
from ..patterns.sub_tokens import SubTokens


@dataclass(frozen=True)
class HeadContext:
    """The model around its head."""

    width: int
    """D."""
    arrangement: CodebookPattern
    code_vectors: Tensor | None = None
    """[K, V, width] of the tokenizer, if the config needs them."""
    input: nn.Module | None = None
    """The model's input embedding, ids [B, K, S] -> [B, S, D]. Its weights belong to the model, not to the head."""


class Head(Protocol):
    """Protocol of a head with J sub-tokens; J is the number of codebooks unless the head splits codes."""

    sub_tokens: SubTokens
    period: int
    """Period of its stages in steps: step s is sampled like step s % period."""

    def initialize_(self) -> None:
        """Initialize weights whose scale differs from the backbone's; the model has initialized all of them before."""
        ...

    def __call__(self, hidden: Tensor, ids: Tensor | None, first_step: int = 0) -> Tensor:
        """Logits of whole sequences: hidden [B, S, D] of the steps from first_step on and their ids [B, K, S] ->
        [B, S, J, V'], -inf for values outside a sub-token's vocabulary.

        The logits depend only on sub-tokens of earlier stages of the same step; a head with one stage accepts None.
        """
        ...

    def losses(self, hidden: Tensor, ids: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Losses [B, K, S] float32, nats, of whole sequences from step 0 on; 0 where mask [B, K, S] is False."""
        ...

    def stages_at(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The sub-tokens sampled together in a step, in order of prediction; sub-tokens of codebooks without a code in
        that step may be omitted."""
        ...

    def start(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> Any:
        """Allocate the head's generation state."""
        ...

    def begin(self, memory: Any, hidden: Tensor, step: int) -> Any:
        """Prepare `predict` for one step, from the state of `start` and hidden [B, D]."""
        ...

    def predict(self, begun: Any, stage: int, sub_tokens: Tensor) -> Tensor:
        """Logits [B, n, *] of the n sub-tokens of a stage, in order; sub_tokens [B, J] holds earlier choices."""
        ...
