"""Masked cross-entropy, reported per codebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .fused_autograd import token_losses

IGNORED = -100
"""Target of positions without loss."""


@dataclass(frozen=True)
class LossReport:
    """Loss of a batch."""

    loss: Tensor
    """Scalar: mean over codebooks of per_codebook, or their weighted mean, plus weighted losses of further parts."""
    per_codebook: Tensor
    """[K] float32, nats: mean over each codebook's cells where the mask is True; differentiable. For a next-scale model
    the parts are the scales, and a model with an aligned text has the advance as one more part, here and in the fields
    below (see LossParts)."""
    count: Tensor
    """[K] long, number of these cells: weighting per_codebook by it combines batches exactly."""
    weights: Tensor
    """[K] float32: weight of each codebook in the loss; they sum to 1. Those of further parts are added to this sum."""
    ahead: Tensor | None = None
    """[K] float32, weighted multi-token prediction loss, per term of per_codebook; training adds it."""


@dataclass(frozen=True)
class LossParts:
    """The parts of a reported loss: the codebooks or, for a next-scale model, the scales of its one codebook."""

    name: str
    """"codebook" or "scale"."""
    shares: tuple[float, ...]
    """Weight of each part in the reported mean; they sum to 1."""
    further: tuple[str, ...] = ()
    """Parts after these that are not in the mean: "advance"."""
    leading: tuple[str, ...] = ()
    """Names of the first of these parts, which are no codebooks: "text"."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that have a name."""
        return *self.leading, *self.further

    @property
    def count(self) -> int:
        """Number of all parts."""
        return len(self.shares) + len(self.further)

    def mean(self, values: Sequence[float]) -> float:
        """Weighted mean of one number per part, without the further parts."""
        return sum(share * value for share, value in zip(self.shares, values, strict=False))

    def named(self, values: Sequence[float], prefix: str = "") -> dict[str, Any]:
        """{"per_codebook": [...], "advance": ...} of one number per part, each name after the prefix."""
        assert len(values) == self.count
        first, last = len(self.leading), len(self.shares)
        found: dict[str, Any] = {f"{prefix}per_{self.name}": list(values[first:last])}
        named = zip(self.names, (*values[:first], *values[last:]), strict=True)
        return found | {f"{prefix}{name}": value for name, value in named}


def report_loss(terms: Tensor, mask: Tensor, weights: Tensor | None = None) -> LossReport:
    """Means per codebook and their mean (a mean of means, as in MusicGen).

    Args:
        terms: [B, K, S] nats, 0 where mask [B, K, S] is False.
        weights: [K], relative weight of each codebook; None: equal.
    """
    K = terms.shape[1]
    count = mask.sum(dim=(0, 2))
    per_codebook = terms.sum(dim=(0, 2)) / count.clamp(min=1)
    weights = torch.ones(K, device=terms.device) if weights is None else weights.to(terms.device, torch.float32)
    weights = weights / weights.sum()
    return LossReport((weights * per_codebook).sum(), per_codebook, count, weights)


def with_part(report: LossReport, terms: Tensor, mask: Tensor, weight: float) -> LossReport:
    """The report with one more part: losses [*] in nats, 0 where mask [*] is False, of this weight."""
    count = mask.sum()
    mean = terms.sum() / count.clamp(min=1)
    return LossReport(
        report.loss + weight * mean,
        torch.cat([report.per_codebook, mean.reshape(1)]),
        torch.cat([report.count, count.reshape(1)]),
        torch.cat([report.weights, report.weights.new_tensor([weight])]),
    )


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Losses [*] float32, nats, of logits [*, V] (-inf for invalid ids) and targets [*]; 0 where IGNORED."""
    terms = token_losses(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), label_smoothing, IGNORED)
    return terms.view(targets.shape)
