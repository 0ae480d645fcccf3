"""Heads: from the backbone's hidden state of a step to the ids of that step.

What a head draws are symbols (lm/patterns/sub_tokens.py): mostly the ids themselves. It predicts them in stages, one
after another: what an earlier stage chose may be read by a later one. The parallel head has one stage of all codebooks,
the depth head one for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from ..patterns.sub_tokens import SubTokens
from .bits import BitsHead, BitsHeadConfig
from .depth_transformer import DepthHead, DepthHeadConfig, FactorHeadConfig
from .flat import FlatHead, FlatHeadConfig
from .parallel import ParallelHead, ParallelHeadConfig


class Head(Protocol):
    """What the model asks of a head; J symbols, as many as codebooks unless the head splits codes."""

    symbols: SubTokens
    period: int
    """Steps after which its stages repeat: step s is drawn as step s % period."""

    def initialise_(self) -> None:
        """Fill the weights that are of another scale than the backbone's; the model has filled them all before."""
        ...

    def __call__(self, hidden: Tensor, ids: Tensor | None, first_step: int = 0) -> Tensor:
        """Logits of whole sequences: hidden [B, S, D] of the steps from first_step on, and the ids of the same steps
        [B, K, S] -> [B, S, J, V'], -inf for values a symbol does not have.

        Logits of a symbol depend on symbols of earlier stages of the same step only; a head of one stage takes None.
        """
        ...

    def terms(self, hidden: Tensor, ids: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Loss terms [B, K, S] float32, nats, of whole sequences from step 0 on; 0 where mask [B, K, S] is False."""
        ...

    def stages_at(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The symbols that are drawn together in a step, in the order of prediction; a symbol whose codebook has no
        code in that step may be left out."""
        ...

    def start(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> Any:
        """What a generation needs, allocated once."""
        ...

    def begin(self, memory: Any, hidden: Tensor, step: int) -> Any:
        """What `predict` needs for one step, from `start`'s memory and hidden [B, D]."""
        ...

    def predict(self, begun: Any, stage: int, symbols: Tensor) -> Tensor:
        """Logits [B, n, *] of the n symbols of a stage, to be asked for in order; symbols [B, J] hold what earlier
        stages chose."""
        ...


HeadConfig = Annotated[
    ParallelHeadConfig | FlatHeadConfig | DepthHeadConfig | FactorHeadConfig | BitsHeadConfig,
    Field(discriminator="kind"),
]

HEADS: dict[str, Callable[..., Any]] = {
    "parallel": ParallelHead,
    "flat": FlatHead,
    "depth": DepthHead,
    "factor": DepthHead,
    "bits": BitsHead,
}
"""Made as HEADS[kind](config, width, arrangement, code_vectors); a module that does what `Head` says."""
