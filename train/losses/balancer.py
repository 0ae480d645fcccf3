"""How the terms of a tokenizer's loss become one gradient.

A term at the output (a spectrum, a discriminator, a perceptual distance) reaches the network only through the
reconstruction x, so all there is to know of it is g_i, its gradient with respect to x. The kinds differ in what they
make of those:

    sum        sum_i w_i g_i
    balancer   sum_i (w_i / sum w) norm g_i / |g_i|                                      (EnCodec, arXiv:2210.13438)
    adaptive   as sum, with some g_i times |G_rest| / |G_i|, gradients at the decoder's last layer
                                                                                         (VQGAN, arXiv:2012.09841)

The norms are moving averages over finished steps, each of the whole batch: the result then does not depend on how the
batch is cut into micro-batches and processes. A term that is new is measured before its first step (`missing`).
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
    """Weights multiply the terms."""

    kind: Literal["sum"] = "sum"


class BalancerConfig(Config):
    """Weights are shares of the gradient that reaches the reconstruction, whatever the terms' own scales."""

    kind: Literal["balancer"] = "balancer"
    norm: PositiveFloat = 1.0
    """Norm of an item's gradient if all terms pulled the same way; terms inside the network are added to it as they
    are."""
    decay: float = Field(default=0.999, ge=0, lt=1)
    """Of the moving averages of the terms' norms."""


class AdaptiveConfig(Config):
    """Weights multiply the terms; those of some follow the ratio of gradient norms at the decoder's last layer."""

    kind: Literal["adaptive"] = "adaptive"
    terms: tuple[str, ...] = ("adversarial",)
    """Names of the terms whose gradient is brought to the norm of that of all others together."""
    decay: float = Field(default=0.0, ge=0, lt=1)
    """Of the moving averages of the norms; 0: those of the step before."""
    limit: PositiveFloat = 1e4
    """Largest factor."""


BalanceConfig = Annotated[SumConfig | BalancerConfig | AdaptiveConfig, Field(discriminator="kind")]


class Balance:
    """Weights that multiply the terms; base of the other kinds.

    Terms are differentiated in groups. `weights` always holds the terms that are on, and no weight of 0.
    """

    def __init__(self, config: SumConfig | BalancerConfig | AdaptiveConfig):
        self.averages: dict[str, list[float]] = {}
        """Group -> [sum, weight] of its norm's moving average; their ratio does not remember the start at 0."""
        self.decay = 0.0 if isinstance(config, SumConfig) else config.decay

    def groups(self, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Group -> term -> its weight in the group's loss."""
        return {"": dict(weights)}

    def measured(self, weights: Mapping[str, float]) -> tuple[str, ...]:
        """Groups whose norms are needed."""
        return ()

    def factors(self, weights: Mapping[str, float]) -> dict[str, float]:
        """What the gradient of each group is multiplied by."""
        return {"": 1.0}

    def measure(self, gradient: Tensor, at_last_layer: Callable[[Tensor], Tensor]) -> Tensor:
        """What is added up over the batch for a group.

        Args:
            gradient: of the sum of the items' losses with respect to the reconstruction, [B, ...].
            at_last_layer: turns that into the gradient of the decoder's last layer.
        """
        raise AssertionError("a sum measures nothing")

    def norm(self, total: Tensor, items: int) -> float:
        """The norm from what was added up over `items`."""
        raise AssertionError("a sum measures nothing")

    def missing(self, weights: Mapping[str, float]) -> bool:
        """Whether a norm is needed that was never measured."""
        return any(group not in self.averages for group in self.measured(weights))

    def note(self, totals: Mapping[str, Tensor], items: int) -> None:
        """Take in what was measured on a whole batch; a norm that is not finite is left out."""
        for group, total in totals.items():
            norm = self.norm(total, items)
            if math.isfinite(norm):
                before = self.averages.get(group, [0.0, 0.0])
                new = (norm, 1.0)
                self.averages[group] = [self.decay * a + (1 - self.decay) * b for a, b in zip(before, new, strict=True)]

    def average(self, group: str) -> float:
        """The averaged norm of a group."""
        total, weight = self.averages[group]
        return max(total / weight, SMALLEST)


class Balancer(Balance):
    """See BalancerConfig. A norm is the mean over items of the norm of an item's own gradient."""

    def __init__(self, config: BalancerConfig):
        super().__init__(config)
        self.total_norm = config.norm

    def groups(self, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Each term alone."""
        return {name: {name: 1.0} for name in weights}

    def measured(self, weights: Mapping[str, float]) -> tuple[str, ...]:
        """All."""
        return tuple(weights)

    def factors(self, weights: Mapping[str, float]) -> dict[str, float]:
        """norm (w_i / sum w) / |g_i|."""
        whole = sum(weights.values())
        return {
            # a term without a norm is one that was never finite: it waits
            name: self.total_norm * weight / whole / self.average(name) if name in self.averages else 0.0
            for name, weight in weights.items()
        }

    def measure(self, gradient: Tensor, at_last_layer: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum of the items' norms."""
        return gradient.float().flatten(1).norm(dim=1).sum()

    def norm(self, total: Tensor, items: int) -> float:
        """Their mean."""
        return float(total) / items


class Adaptive(Balance):
    """See AdaptiveConfig. The group "" is all terms that are not adaptive."""

    def __init__(self, config: AdaptiveConfig):
        super().__init__(config)
        self.config = config

    def groups(self, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """The adaptive terms each alone, all others together."""
        rest = {name: weight for name, weight in weights.items() if name not in self.config.terms}
        alone = {name: {name: weight} for name, weight in weights.items() if name in self.config.terms}
        return ({"": rest} if rest else {}) | alone

    def measured(self, weights: Mapping[str, float]) -> tuple[str, ...]:
        """All, where there is something to compare."""
        groups = tuple(self.groups(weights))
        return groups if len(groups) > 1 and groups[0] == "" else ()

    def factors(self, weights: Mapping[str, float]) -> dict[str, float]:
        """|G_rest| / |g_i|: a term's own weight stays in its group, and so multiplies the ratio."""
        factors = {}
        compared = self.measured(weights)
        for group, inside in self.groups(weights).items():
            known = group in compared and group in self.averages and "" in self.averages
            factors[group] = 1.0
            if group and known:
                factors[group] = min(self.average("") * inside[group] / self.average(group), self.config.limit)
        return factors

    def measure(self, gradient: Tensor, at_last_layer: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient at the last layer."""
        return at_last_layer(gradient).float()

    def norm(self, total: Tensor, items: int) -> float:
        """Norm of the batch's gradient."""
        return float(total.norm()) / items


BALANCES = {"sum": Balance, "balancer": Balancer, "adaptive": Adaptive}


def make_balance(config: SumConfig | BalancerConfig | AdaptiveConfig) -> Balance:
    """The balance a config names."""
    return BALANCES[config.kind](config)


def group_gradients(
    losses: Mapping[str, Tensor], groups: Mapping[str, Mapping[str, float]], found: Tensor
) -> dict[str, Tensor]:
    """Gradient of each group's loss, summed over items, with respect to the reconstruction.

    Args:
        losses: term -> [B], the loss of each item.
        groups: see Balance.groups.
        found: the reconstruction [B, ...].
    Returns:
        group -> [B, ...].
    """
    gradients = {}
    for place, (group, weights) in enumerate(groups.items()):
        loss = torch.stack([weight * losses[name].sum() for name, weight in weights.items()]).sum()
        keep = place < len(groups) - 1  # groups may share a part of the graph, as judges are
        (gradients[group],) = torch.autograd.grad(loss, found, retain_graph=keep)
    return gradients
