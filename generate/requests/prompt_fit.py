"""Whether a prompt sounds like the beginning of the text that a sample shall say.

Where it does, the text makes its codes likelier than no text does; where it is other words, less likely. Measured with
the bundled speech model on codebook 0: of 120 beginnings of recordings with their own text the text took at most 3.3
nats away, of the same recordings with another text it took more than 6 away from half (two thirds at 0.7 of a
recording). Noise and music cannot be told so.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...lm.models.causal import TokenLM
from ...lm.models.masked import MaskedLM
from ...lm.models.registry import AnyLM
from .conditions import ConditionInputs

UNLIKELY = 6.0
"""Nats that the text takes from the likelihood of a prompt that is of other words."""


@torch.no_grad()
def gain_by_text(lm: AnyLM, told: ConditionInputs, prompt: Tensor) -> float | None:
    """Nats by which the text makes the codes of codebook 0 of a prompt likelier; None where the model cannot say.

    Args:
        told: of one row, with a text.
        prompt: codes [K, t].
    """
    forgets = any(condition.kind == "text" and condition.dropout for condition in lm.config.conditions)
    if not forgets or not isinstance(lm, TokenLM) or isinstance(lm, MaskedLM):
        return None
    costs = []
    for row in (told, replace(told, text_ids=None)):
        conditions, _ = row.rows(lm, 1)
        report = lm.loss(prompt[None].to(lm.device), None, conditions.to(lm.device))
        costs.append(float(report.per_codebook[0] * report.count[0]))
    return costs[1] - costs[0]
