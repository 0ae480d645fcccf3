"""Sampling of the advance of an aligned text's pointer, after each step whose next step is at another frame.

    p(a) ~ exp((logit_a + bias * [a > 0]) / temperature)        for a = 0 .. reach(unit)

`bias` raises or lowers the odds that the unit ends with this frame, and so the rate of speech. A unit that has lasted
as long as the model can tell ends in any case.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...lm.conditioning.aligned import AlignedCondition, AlignedUnits
from ...lm.conditioning.pointers import Pointers
from ...lm.generation_config import GenerationConfig
from .counter_rng import uniform

DRAW = 2
"""Index of the random number of the advance within a step; 0 and 1 are those of the codes."""
GAIN = 1.0
"""Bias per natural logarithm of the speed."""


class AdvanceSampler:
    """Samples advances by the settings `speed` and `advance_temperature`."""

    def __init__(self, config: GenerationConfig, aligned: AlignedCondition):
        self.aligned = aligned
        self.bias, self.temperature = GAIN * math.log(config.speed), config.advance_temperature

    def parts(self) -> tuple:
        """All settings that determine sampling."""
        return self.bias, self.temperature

    def __call__(
        self, hidden: Tensor, units: AlignedUnits, pointers: Pointers, seeds: Tensor, step: int | Tensor
    ) -> Pointers:
        """The pointers [B, 1] of the next frame.

        Args:
            hidden: [B, D] of the step. pointers: [B, 1] that it read. seeds: [B].
            units: of these rows; may hold further rows after them.
        """
        reach = units.reach[: len(seeds)].gather(1, pointers.unit)[:, 0]
        logits = self.aligned.advance_logits(hidden, reach).double()
        moves = torch.arange(logits.shape[-1], device=logits.device) > 0
        overdue = (pointers.since[:, 0] >= self.aligned.max_unit_frames) & (reach > 0)
        logits = (logits + self.bias * moves).masked_fill(overdue[:, None] & ~moves, float("-inf"))
        cumulative = (logits / self.temperature).softmax(dim=-1).cumsum(dim=-1)
        drawn = (cumulative <= uniform(seeds, step, 1, DRAW) * cumulative[:, -1:]).sum(dim=-1)
        advance = torch.minimum(drawn, reach)[:, None]
        return Pointers(
            pointers.unit + advance, torch.where((advance > 0) | (reach == 0)[:, None], 0, pointers.since + 1)
        )
