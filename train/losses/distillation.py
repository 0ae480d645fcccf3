"""Distillation: chosen levels of the codes (or the latents), or a range of their channels, learn to predict the
features of a teacher.

With s the features resampled to the tokens and q a learned projection of the levels, both [T, D]:

    d_axis    -mean_d log sigmoid(cos(q[:, d], s[:, d]))                  each feature as a trajectory over time
    t_axis    mean |q - s| - mean_t log sigmoid(cos(q[t], s[t]))          each token as a vector
    squared   mean (q - s)^2                                              reconstruction of the features

With `normalise`, s is normalized over the tokens of an example.
Sources: SpeechTokenizer, arXiv:2308.16692, section 3.2; DM-Codec, arXiv:2410.15017 (for several teachers, use several
losses); X-Codec's semantic reconstruction, arXiv:2408.17175 (squared, with levels "all"); one of two codebooks that
share an index: TokenFlow, arXiv:2412.03069 (its channels).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import ConfigError
from .base import LatentLoss, LatentLossInputs, LossConfig, LossContext, check_levels, mean_over, mixed
from .teachers import TeacherConfig, feature_size, fit_places, make_teacher

SMALLEST_DEVIATION = 1e-3
"""Smallest deviation to divide by: features that vary less are not amplified further."""

Levels = Literal["latents", "all"] | tuple[NonNegativeInt, ...]


class DistilConfig(LossConfig):
    """One teacher and one target."""

    kind: Literal["distil"] = "distil"
    teacher: TeacherConfig
    """The teacher whose features are predicted."""
    layer: int = -1
    """Index of the teacher's layer."""
    levels: Levels = (0,)
    """Levels that predict: codebook numbers, "all" for quantized latents, or "latents" for those before the
    quantizer."""
    channels: tuple[NonNegativeInt, PositiveInt] | None = None
    """First channel of the latents to use and the one after the last; null: all."""
    distance: Literal["d_axis", "t_axis", "squared"] = "d_axis"
    """d_axis: cosine of each feature over time. t_axis: absolute difference and cosine of each token. squared: squared
    difference."""
    hidden: NonNegativeInt = 0
    """Width of a hidden layer of the projection; 0: linear."""
    normalise: bool = False
    """Subtract each feature's mean over an example's tokens and divide by its deviation, so that "squared" and "t_axis"
    ignore its scale. A projection needs thousands of steps to reach features in the tens, such as the first of MFCC."""


class DistillationLoss(LatentLoss):
    """See DistilConfig; the module docstring has the formulas."""

    def __init__(self, config: DistilConfig, context: LossContext, where: str):
        super().__init__()
        self.config = config
        check_levels(config.levels, context.num_codebooks, where)
        first, end = config.channels or (0, context.latent_dim)
        if not first < end <= context.latent_dim:
            raise ConfigError(
                f"{where}.channels: channels {first} to {end} are beyond the {context.latent_dim} latent channels"
            )
        self.channels = slice(first, end)
        teacher = make_teacher(config.teacher, context.geometry, context.teachers, f"{where}.teacher")
        # In a list, so that the frozen teacher is not registered: it is not trained, averaged or saved.
        self._teacher = [teacher]
        features = feature_size(teacher, context.geometry, config.layer, where)
        self.project = make_projection(end - first, config.hidden, features)

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See LatentLoss."""
        (teacher,) = self._teacher
        teacher.to(view.latents.device)
        media = mixed(view.batch.media)
        if view.batch.sample_mask is not None:
            media = media * view.batch.sample_mask
        with torch.no_grad():
            wanted = fit_places(teacher.layers(media)[self.config.layer].float(), view.places)
            wanted = normalise(wanted, view.mask) if self.config.normalise else wanted
        found = self.project(view.values(self.config.levels)[..., self.channels]).float()
        return DISTANCES[self.config.distance](found, wanted, view.mask)


def normalise(features: Tensor, mask: Tensor) -> Tensor:
    """Normalize [B, T, D] to mean 0 and variance 1 over the tokens in the mask [B, T]; 0 where constant.

    For MFCC this is cepstral mean and variance normalization.
    """
    inside = mask[..., None]
    number = inside.sum(dim=1, keepdim=True).clamp_min(1)
    apart = features - torch.where(inside, features, 0.0).sum(dim=1, keepdim=True) / number
    variance = torch.where(inside, apart.square(), 0.0).sum(dim=1, keepdim=True) / number
    return apart / variance.sqrt().clamp_min(SMALLEST_DEVIATION)


def make_projection(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """Latents -> features, linear or with one hidden layer."""
    if not hidden:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def d_axis(found: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Two [B, T, D] and a mask [B, T] -> [B]."""
    inside = mask[..., None]
    cosine = F.cosine_similarity(found * inside, wanted * inside, dim=1)
    return -F.logsigmoid(cosine).mean(1)


def t_axis(found: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Two [B, T, D] and a mask [B, T] -> [B]."""
    apart = (found - wanted).abs().mean(2)
    return mean_over(apart - F.logsigmoid(F.cosine_similarity(found, wanted, dim=2)), mask)


def squared(found: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Two [B, T, D] and a mask [B, T] -> [B]."""
    return mean_over((found - wanted).square().mean(2), mask)


DISTANCES = {"d_axis": d_axis, "t_axis": t_axis, "squared": squared}
