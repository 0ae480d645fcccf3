"""Several steps ahead: what the steps after this one hold, guessed from the hidden state of this one.

    hidden of step s  ->  head                    ids of step s
                      ->  layer 1, head           a guess of step s + 1, without knowing step s
                      ->  layer n, head           a guess of step s + n

In training the guesses are an extra loss; generation (generate/decoding/speculative.py) reads several guesses at once
and keeps those that the model, having read them, would have chosen itself.
Source: blockwise parallel decoding, arXiv:1811.03115; one residual layer a step as in Medusa, arXiv:2401.10774.
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
    from .registry import Head


class AheadConfig(Config):
    """Guesses of the steps after the one that is predicted."""

    steps: int = Field(default=3, ge=1, le=16)
    """How many steps ahead."""
    weight: float = Field(default=0.1, ge=0)
    """Of the loss of each of these steps, beside 1 for the step itself."""


class Ahead(nn.Module):
    """One residual layer for each step ahead; what comes out goes through the model's own head."""

    def __init__(self, config: AheadConfig, width: int):
        super().__init__()
        self.steps, self.weight = config.steps, config.weight
        self.layers = nn.ModuleList(Linear(width, width, bias=False) for _ in range(config.steps))

    def forward(self, hidden: Tensor, steps: int) -> Tensor:
        """hidden [*, D] of a step -> hidden [*, D] to guess the ids of so many steps later from, 1 to `steps`."""
        return hidden + F.silu(self.layers[steps - 1](hidden))

    def terms(
        self,
        head: Head,
        hidden: Tensor,
        ids: Tensor,
        mask: Tensor,
        label_smoothing: float = 0.0,
        places: Tensor | None = None,
    ) -> Tensor:
        """Weighted loss terms [B, K, S] of the guesses of each step, summed over how far they look ahead.

        Args:
            hidden: [B, S, D] of the steps. ids, mask: [B, K, S] of the same steps.
            places: [S] long, the place of each step in its row, where rows are laid end to end; None: 0 to S - 1.
        """
        places = torch.arange(mask.shape[2], device=mask.device) if places is None else places
        total = torch.zeros_like(mask, dtype=torch.float32)
        for steps in range(1, min(self.steps, ids.shape[2] - 1) + 1):
            # What is said of step s comes from the hidden state of step s - steps; the first steps are not guessed.
            guessing = F.pad(self(hidden[:, :-steps], steps), (0, 0, steps, 0))
            guessed = mask & (places >= steps)
            total = total + head.terms(guessing, ids, guessed, label_smoothing)
        return self.weight * total
