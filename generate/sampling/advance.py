"""Sampling of the advance of an aligned text's pointer, after each step whose next step is at another frame.

    p(a) ~ exp(logit_a / temperature)        for a = 0 .. reach(unit)

A unit that has lasted as long as the model can tell ends in any case.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...lm.conditioning.aligned import AlignedCondition, AlignedUnits
from ...lm.conditioning.pointers import Pointers
from ...lm.generation_config import GenerationConfig


class AdvanceSampler:
    """Samples advances by the setting `advance_temperature`."""

    def __init__(self, config: GenerationConfig, aligned: AlignedCondition):
        self.aligned = aligned
        self.temperature = config.advance_temperature
        most = aligned.max_advance
        advances, reach = torch.arange(most + 1), torch.arange(most + 1)[:, None]
        within = torch.where(advances > reach, float("-inf"), 0.0).double()
        overdue = within.masked_fill((advances == 0) & (reach > 0), float("-inf"))
        self.biases = torch.cat([within, overdue]).to(aligned.advance.weight.device)
        """[2 (max_advance + 1), max_advance + 1]: added to the logits, by reach; then the same for overdue units."""

    def parts(self) -> tuple:
        """All settings that determine sampling."""
        return (self.temperature,)

    def __call__(self, hidden: Tensor, units: AlignedUnits, pointers: Pointers, numbers: Tensor) -> Pointers:
        """The pointers [B, 1] of the next frame.

        Args:
            hidden: [B, D] of the step. pointers: [B, 1] that it read. numbers: [B, 1], random.
            units: of these rows; may hold further rows after them.
        """
        reach = units.reach[: len(hidden)].gather(1, pointers.unit)
        overdue = pointers.since >= self.aligned.max_unit_frames
        rule = self.biases.index_select(0, (reach + len(self.biases) // 2 * overdue)[:, 0])
        logits = self.aligned.advance(hidden).double() + rule
        cumulative = (logits / self.temperature).softmax(dim=-1).cumsum(dim=-1)
        drawn = (cumulative <= numbers * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
        advance = torch.minimum(drawn, reach)
        stays = (advance == 0) & (reach > 0)
        return Pointers(pointers.unit + advance, torch.where(stays, pointers.since + 1, 0))
