"""Perceptual distance: compares the reconstruction and the original in the features of a frozen teacher.

In every layer, the feature vector at each position is normalized to length 1 and the squared length of the difference
is averaged over positions; layers have equal weight. Source: LPIPS, arXiv:1801.03924, equation 1, with all channel
weights 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import LossConfig, LossContext, ReconstructionLoss, ReconstructionLossInputs
from .teachers import TeacherConfig, make_teacher


class PerceptualConfig(LossConfig):
    """Distance in the features of a teacher."""

    kind: Literal["perceptual"] = "perceptual"
    teacher: TeacherConfig
    """The teacher whose features are compared."""


class PerceptualLoss(ReconstructionLoss):
    """LPIPS-like distance; see PerceptualConfig."""

    def __init__(self, config: PerceptualConfig, context: LossContext, where: str):
        self.teacher = make_teacher(config.teacher, context.geometry, context.teachers, f"{where}.teacher")

    def __call__(self, view: ReconstructionLossInputs) -> Tensor:
        """See ReconstructionLoss."""
        self.teacher.to(view.found.device)
        with torch.no_grad():
            wanted = self.teacher.layers(view.wanted)
        found = self.teacher.layers(view.found)
        return torch.stack([layer_distance(a, b) for a, b in zip(found, wanted, strict=True)]).mean(0)


def layer_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Features [B, C, *places] -> [B]."""
    a, b = (F.normalize(x.float(), dim=1, eps=1e-6) for x in (found, wanted))
    return (a - b).square().sum(1).flatten(1).mean(1)
