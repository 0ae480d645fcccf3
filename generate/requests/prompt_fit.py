"""Checks whether a speech prompt matches the beginning of the text to be spoken.

A matching text makes the codes of the prompt likelier than no text does; other words make them less likely. Measured
with the bundled speech model on codebook 0: for 120 beginnings of recordings, their own text lowered the log-likelihood
by at most 3.3 nats; another text lowered it by more than 6 nats for half of them (two thirds at 0.7 of a recording).
Noise and music cannot be detected this way.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...lm.models.base import LanguageModel
from .conditions import ConditionInputs

UNLIKELY = 6.0
"""Loss of log-likelihood, in nats, above which a prompt is taken to have other words than the text."""


@torch.no_grad()
def gain_by_text(lm: LanguageModel, inputs: ConditionInputs, prompt: Tensor) -> float | None:
    """Gain of log-likelihood, in nats, of a prompt's codebook 0 from the text; None if the model cannot compute it.

    Args:
        inputs: condition inputs of one row, with a text.
        prompt: codes [K, t].
    """
    forgets = any(condition.kind == "text" and condition.dropout for condition in lm.config.conditions)
    if not forgets or not lm.decode_plan.in_order:
        return None
    costs = []
    for row in (inputs, replace(inputs, text_ids=None)):
        conditions, _ = row.rows(lm, 1)
        report = lm.loss(prompt[None].to(lm.device), None, conditions.to(lm.device))
        costs.append(float(report.per_codebook[0] * report.count[0]))
    return costs[1] - costs[0]
