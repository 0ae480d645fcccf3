"""Masked cross-entropy, reported for every codebook."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossReport:
    """Loss of a batch."""

    loss: Tensor
    """Scalar: mean over codebooks of per_codebook."""
    per_codebook: Tensor
    """[K] float32, nats: mean over the masked-in cells of each codebook. It carries the gradient too."""
    count: Tensor
    """[K] long, masked-in cells: batches are joined exactly by weighting per_codebook with it."""


def codebook_loss(logits: Tensor, targets: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> LossReport:
    """Cross-entropy per codebook and its mean over codebooks (a mean of means, as MusicGen's).

    Args:
        logits: [B, K, S, V]; -inf for ids a codebook does not have. Computed on in float32.
        targets: [B, K, S] long.
        mask: [B, K, S] bool, True where a target counts; elsewhere logits and targets do not matter.
        label_smoothing: share of the target's weight spread evenly over the codebook's ids.
    """
    B, K, S, V = logits.shape
    # [B, S, K, V] is the order the head writes: no copy of the largest tensor of the whole model
    flat = logits.transpose(1, 2).reshape(-1, V).float()
    wanted = torch.where(mask, targets, IGNORED).transpose(1, 2).reshape(-1)
    terms = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="none")
    if label_smoothing:
        # By hand: torch's own label_smoothing would add -inf logits into the mean.
        absent = flat.detach() == float("-inf")
        spread = torch.logsumexp(flat, dim=-1) - flat.masked_fill(absent, 0.0).sum(dim=-1) / (~absent).sum(dim=-1)
        terms = (1 - label_smoothing) * terms + label_smoothing * torch.where(wanted == IGNORED, 0.0, spread)
    count = mask.sum(dim=(0, 2))
    per_codebook = terms.view(B, S, K).sum(dim=(0, 1)) / count.clamp(min=1)
    return LossReport(loss=per_codebook.mean(), per_codebook=per_codebook, count=count)


IGNORED = -100
