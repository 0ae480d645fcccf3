"""Masked cross-entropy, reported for every codebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The target where no loss is due."""


@dataclass(frozen=True)
class LossReport:
    """Loss of a batch."""

    loss: Tensor
    """Scalar: mean over codebooks of per_codebook, or their weighted mean."""
    per_codebook: Tensor
    """[K] float32, nats: mean over the masked-in cells of each codebook. It carries the gradient too. Of a next-scale
    model the parts are the scales, in this and all that follows (see LossParts)."""
    count: Tensor
    """[K] long, masked-in cells: batches are joined exactly by weighting per_codebook with it."""
    weights: Tensor
    """[K] float32: each codebook's share of the loss; they sum to 1."""
    guesses: Tensor | None = None
    """[K] float32, weighted loss of the steps guessed ahead, per term of per_codebook; training adds it."""


@dataclass(frozen=True)
class LossParts:
    """What a loss is reported for: the codebooks or, of a next-scale model, the scales of its one codebook."""

    name: str
    """"codebook" or "scale"."""
    shares: tuple[float, ...]
    """Each part's share in the mean that is reported; they sum to 1."""

    def mean(self, values: Sequence[float]) -> float:
        """Of numbers, one for each part."""
        return sum(share * value for share, value in zip(self.shares, values, strict=True))


def report_loss(terms: Tensor, mask: Tensor, weights: Tensor | None = None) -> LossReport:
    """Means per codebook (a mean of means, as MusicGen's).

    Args:
        terms: [B, K, S] nats, 0 where mask [B, K, S] is False.
        weights: [K], how much each codebook counts, relative to each other; None: all alike.
    """
    K = terms.shape[1]
    count = mask.sum(dim=(0, 2))
    per_codebook = terms.sum(dim=(0, 2)) / count.clamp(min=1)
    weights = torch.ones(K, device=terms.device) if weights is None else weights.to(terms.device, torch.float32)
    weights = weights / weights.sum()
    return LossReport((weights * per_codebook).sum(), per_codebook, count, weights)


def codebook_loss(logits: Tensor, targets: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> LossReport:
    """Cross-entropy per codebook and its mean over codebooks.

    Args:
        logits: [B, K, S, V]; -inf for ids a codebook does not have. Computed on in float32.
        targets: [B, K, S] long.
        mask: [B, K, S] bool, True where a target counts; elsewhere logits and targets do not matter.
        label_smoothing: share of the target's weight spread evenly over the codebook's ids.
    """
    # [B, S, K, V] is the order the head writes: no copy of the largest tensor of the whole model
    wanted = torch.where(mask, targets, IGNORED).transpose(1, 2)
    terms = cross_entropy(logits.transpose(1, 2), wanted, label_smoothing)
    return report_loss(terms.transpose(1, 2), mask)


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Terms [*] float32, nats, of logits [*, V] (-inf for ids that do not exist) and targets [*]; 0 where IGNORED."""
    flat, wanted = logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1)
    terms = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="none")
    if label_smoothing:
        # By hand: torch's own label_smoothing would add -inf logits into the mean.
        absent = flat.detach() == float("-inf")
        spread = torch.logsumexp(flat, dim=-1) - flat.masked_fill(absent, 0.0).sum(dim=-1) / (~absent).sum(dim=-1)
        terms = (1 - label_smoothing) * terms + label_smoothing * torch.where(wanted == IGNORED, 0.0, spread)
    return terms.view(targets.shape)
