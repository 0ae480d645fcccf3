"""Combines the losses of a tokenizer into one gradient.

An output loss (a spectrum, a discriminator, a perceptual distance) reaches the network only through the reconstruction
x, so its gradient g_i with respect to x describes it fully. The kinds combine these gradients differently:

    sum        sum_i w_i g_i
    balancer   sum_i (w_i / sum w) norm g_i / |g_i|                                      (EnCodec, arXiv:2210.13438)
    adaptive   as sum, with some g_i times |G_rest| / |G_i|, gradients at the decoder's last layer
                                                                                         (VQGAN, arXiv:2012.09841)

The norms are moving averages over finished steps, each computed on the whole batch, so the result does not depend on
how the batch is split into micro-batches and processes. A new loss is measured before its first step (`missing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from ...configs.schema import Config

SMALLEST = 1e-12


class SumConfig(Config):
    """Weights multiply the losses."""

    kind: Literal["sum"] = "sum"


class BalancerConfig(Config):
    """Weights are shares of the gradient that reaches the reconstruction, regardless of the scales of the losses."""

    kind: Literal["balancer"] = "balancer"
    norm: PositiveFloat = 1.0
    """Norm of an example's gradient if all losses pulled in the same direction; inner losses are added unbalanced."""
    decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the moving averages of the gradient norms."""


class AdaptiveConfig(Config):
    """Weights multiply the losses; some are scaled by the ratio of gradient norms at the decoder's last layer."""

    kind: Literal["adaptive"] = "adaptive"
    terms: tuple[str, ...] = ("adversarial",)
    """Names of the losses whose gradient is scaled to the norm of the gradient of all others together."""
    decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving averages of the norms; 0: norms of the previous step."""
    limit: PositiveFloat = 1e4
    """Largest scaling factor."""


BalanceConfig = Annotated[SumConfig | BalancerConfig | AdaptiveConfig, Field(discriminator="kind")]


class Balance:
    """Weights multiply the losses; base class of the other kinds.

    Losses are differentiated in groups. `weights` always holds the active losses, without weights of 0.
    """

    def __init__(self, config: SumConfig | BalancerConfig | AdaptiveConfig):
        self.averages: dict[str, list[float]] = {}
        """Group -> [sum, weight] of the moving average of its norm; their ratio has no bias toward the initial 0."""
        self.decay = 0.0 if isinstance(config, SumConfig) else config.decay

    def groups(self, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Group -> loss -> its weight in the group's loss."""
        return {"": dict(weights)}

    def measured(self, weights: Mapping[str, float]) -> tuple[str, ...]:
        """Groups whose norms are needed."""
        return ()

    def factors(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Factor on the gradient of each group."""
        return {"": 1.0}

    def measure(self, gradient: Tensor, at_last_layer: Callable[[Tensor], Tensor]) -> Tensor:
        """Statistic of a group that is summed over the batch.

        Args:
            gradient: of the sum of the examples' losses with respect to the reconstruction, [B, ...].
            at_last_layer: maps that to the gradient of the decoder's last layer.
        """
        raise AssertionError("a sum of losses cannot be measured")

    def norm(self, total: Tensor, items: int) -> float:
        """Norm from the statistic summed over `items` examples."""
        raise AssertionError("a sum of losses cannot be measured")

    def missing(self, weights: Mapping[str, float]) -> bool:
        """Whether a required norm has never been measured."""
        return any(group not in self.averages for group in self.measured(weights))

    def note(self, totals: Mapping[str, Tensor], items: int) -> None:
        """Update the averages with the statistics of a whole batch; non-finite norms are ignored."""
        for group, total in totals.items():
            norm = self.norm(total, items)
            if math.isfinite(norm):
                before = self.averages.get(group, [0.0, 0.0])
                new = (norm, 1.0)
                self.averages[group] = [self.decay * a + (1 - self.decay) * b for a, b in zip(before, new, strict=True)]

    def average(self, group: str) -> float:
        """Averaged norm of a group."""
        total, weight = self.averages[group]
        return max(total / weight, SMALLEST)


class Balancer(Balance):
    """See BalancerConfig. A norm is the mean over examples of the norm of each example's gradient."""

    def __init__(self, config: BalancerConfig):
        super().__init__(config)
        self.total_norm = config.norm

    def groups(self, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """One group per loss."""
        return {name: {name: 1.0} for name in weights}

    def measured(self, weights: Mapping[str, float]) -> tuple[str, ...]:
        """All groups."""
        return tuple(weights)

    def factors(self, weights: Mapping[str, float]) -> dict[str, float]:
        """norm (w_i / sum w) / |g_i|."""
        whole = sum(weights.values())
        return {
            # a loss without a norm has never been finite: it gets factor 0 until it is
            name: self.total_norm * weight / whole / self.average(name) if name in self.averages else 0.0
            for name, weight in weights.items()
        }

    def measure(self, gradient: Tensor, at_last_layer: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum of the per-example norms."""
        return gradient.float().flatten(1).norm(dim=1).sum()

    def norm(self, total: Tensor, items: int) -> float:
        """Mean of the per-example norms."""
        return float(total) / items


class Adaptive(Balance):
    """See AdaptiveConfig. The group "" holds all losses that are not adaptive."""

    def __init__(self, config: AdaptiveConfig):
        super().__init__(config)
        self.config = config

    def groups(self, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """One group for each adaptive loss, and one for all others."""
        rest = {name: weight for name, weight in weights.items() if name not in self.config.terms}
        alone = {name: {name: weight} for name, weight in weights.items() if name in self.config.terms}
        return ({"": rest} if rest else {}) | alone

    def measured(self, weights: Mapping[str, float]) -> tuple[str, ...]:
        """All groups, if there are adaptive losses and others to compare them with."""
        groups = tuple(self.groups(weights))
        return groups if len(groups) > 1 and groups[0] == "" else ()

    def factors(self, weights: Mapping[str, float]) -> dict[str, float]:
        """|G_rest| / |g_i|: the weight of a loss stays in its group and multiplies the ratio."""
        factors = {}
        compared = self.measured(weights)
        for group, inside in self.groups(weights).items():
            known = group in compared and group in self.averages and "" in self.averages
            factors[group] = 1.0
            if group and known:
                factors[group] = min(self.average("") * inside[group] / self.average(group), self.config.limit)
        return factors

    def measure(self, gradient: Tensor, at_last_layer: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient at the last layer."""
        return at_last_layer(gradient).float()

    def norm(self, total: Tensor, items: int) -> float:
        """Norm of the batch gradient."""
        return float(total.norm()) / items


BALANCES = {"sum": Balance, "balancer": Balancer, "adaptive": Adaptive}


def make_balance(config: SumConfig | BalancerConfig | AdaptiveConfig) -> Balance:
    """Build the balance for a config."""
    return BALANCES[config.kind](config)


def group_gradients(
    losses: Mapping[str, Tensor], groups: Mapping[str, Mapping[str, float]], found: Tensor
) -> dict[str, Tensor]:
    """Gradient of each group's loss, summed over examples, with respect to the reconstruction.

    Args:
        losses: loss name -> [B], per example.
        groups: see Balance.groups.
        found: the reconstruction [B, ...].
    Returns:
        group -> [B, ...].
    """
    gradients = {}
    for place, (group, weights) in enumerate(groups.items()):
        loss = torch.stack([weight * losses[name].sum() for name, weight in weights.items()]).sum()
        keep = place < len(groups) - 1  # groups may share part of the graph, such as the discriminators
        (gradients[group],) = torch.autograd.grad(loss, found, retain_graph=keep)
    return gradients
