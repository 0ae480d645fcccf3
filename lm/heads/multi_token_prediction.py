"""Multi-token prediction: predict the ids of later steps from the hidden state of this one.

    hidden of step s  ->  head                    ids of step s
                      ->  layer 1, head           prediction of step s + 1, without knowing step s
                      ->  layer n, head           prediction of step s + n

In training the predictions add an extra loss. In generation (generate/decoding/speculative.py) they are draft tokens:
the model reads several at once and keeps those it would have chosen itself.
Source: blockwise parallel decoding, arXiv:1811.03115; one residual layer per step as in Medusa, arXiv:2401.10774.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...configs.schema import Config
from ..ops.linear import Linear

if TYPE_CHECKING:
    from .base import Head


class AheadConfig(Config):
    """Multi-token prediction of the steps after the next one."""

    steps: int = Field(default=3, ge=1, le=16)
    """Number of steps ahead."""
    weight: float = Field(default=0.1, ge=0)
    """Loss weight of each of these steps, relative to 1 for the step itself."""


class Ahead(nn.Module):
    """One residual layer per step ahead, followed by the model's own head."""

    def __init__(self, config: AheadConfig, width: int):
        super().__init__()
        self.steps, self.weight = config.steps, config.weight
        self.layers = nn.ModuleList(Linear(width, width, bias=False) for _ in range(config.steps))

    def forward(self, hidden: Tensor, steps: int) -> Tensor:
        """hidden [*, D] of a step -> hidden [*, D] to predict the ids 1 to `steps` steps later."""
        return hidden + F.silu(self.layers[steps - 1](hidden))

    def losses(
        self,
        head: Head,
        hidden: Tensor,
        ids: Tensor,
        mask: Tensor,
        label_smoothing: float = 0.0,
        index: Tensor | None = None,
    ) -> Tensor:
        """Weighted losses [B, K, S] of the predictions of each step, summed over the distances.

        Args:
            hidden: [B, S, D] of the steps. ids, mask: [B, K, S] of the same steps.
            index: [S] long, index of each step in its sequence, for packed sequences; None: 0 to S - 1.
        """
        index = torch.arange(mask.shape[2], device=mask.device) if index is None else index
        total = torch.zeros_like(mask, dtype=torch.float32)
        for steps in range(1, min(self.steps, ids.shape[2] - 1) + 1):
            # The prediction of step s comes from the hidden state of step s - steps; the first steps are not predicted.
            guessing = F.pad(self(hidden[:, :-steps], steps), (0, 0, steps, 0))
            guessed = mask & (index >= steps)
            total = total + head.losses(guessing, ids, guessed, label_smoothing)
        return self.weight * total
