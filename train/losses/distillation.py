"""Distillation: chosen levels of the codes (or the latents), or a range of their channels, learn to tell a teacher's
features.

With s the features laid on the tokens and q a learned projection of the levels, both [T, D]:

    d_axis    -mean_d log sigmoid(cos(q[:, d], s[:, d]))                  each feature as a course over time
    t_axis    mean |q - s| - mean_t log sigmoid(cos(q[t], s[t]))          each token as a vector
    squared   mean (q - s)^2                                              reconstruction of the features

and s normalised over the item's tokens where that is asked for.

Sources: SpeechTokenizer, arXiv:2308.16692, section 3.2; DM-Codec, arXiv:2410.15017 (several teachers are several
terms); X-Codec's semantic reconstruction, arXiv:2408.17175 (squared, with levels "all"); one of two codebooks that
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
"""Features that vary less over an item are not blown up further."""

Levels = Literal["latents", "all"] | tuple[NonNegativeInt, ...]


class DistilConfig(LossConfig):
    """One teacher, one target."""

    kind: Literal["distil"] = "distil"
    teacher: TeacherConfig
    layer: int = -1
    """Which of the teacher's layers, where it has several."""
    levels: Levels = (0,)
    """Numbers of codebooks; "all" quantized latents, or "latents" before the quantizer."""
    channels: tuple[NonNegativeInt, PositiveInt] | None = None
    """First of the latents' channels that tell them, and the one after the last; null: all."""
    distance: Literal["d_axis", "t_axis", "squared"] = "d_axis"
    hidden: NonNegativeInt = 0
    """Width of a hidden layer of the projection; 0: it is linear."""
    normalise: bool = False
    """Each feature of an item less its mean over the tokens, divided by its deviation: "squared" and "t_axis" then do
    not count its scale. A projection needs thousands of steps to reach features of tens, as the first of MFCC."""


class DistillationLoss(LatentLoss):
    """See the head of this file."""

    def __init__(self, config: DistilConfig, context: LossContext, where: str):
        super().__init__()
        self.config = config
        check_levels(config.levels, context.num_codebooks, where)
        first, end = config.channels or (0, context.latent_dim)
        if not first < end <= context.latent_dim:
            raise ConfigError(
                f"{where}.channels: channels {first} to {end} are not among the {context.latent_dim} there are"
            )
        self.channels = slice(first, end)
        teacher = make_teacher(config.teacher, context.geometry, context.teachers, f"{where}.teacher")
        # In a list: it is frozen, and no part of what is trained, averaged and saved.
        self._teacher = [teacher]
        features = feature_size(teacher, context.geometry, config.layer, where)
        self.project = make_projection(end - first, config.hidden, features)

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See InnerTerm."""
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
    """[B, T, D] and a mask [B, T] -> [B, T, D], of mean 0 and variance 1 over the tokens inside; 0 where constant.

    Of MFCC this is known as cepstral mean and variance normalisation.
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
    """[B, T, D] twice and a mask [B, T] -> [B]."""
    inside = mask[..., None]
    cosine = F.cosine_similarity(found * inside, wanted * inside, dim=1)
    return -F.logsigmoid(cosine).mean(1)


def t_axis(found: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """[B, T, D] twice and a mask [B, T] -> [B]."""
    apart = (found - wanted).abs().mean(2)
    return mean_over(apart - F.logsigmoid(F.cosine_similarity(found, wanted, dim=2)), mask)


def squared(found: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """[B, T, D] twice and a mask [B, T] -> [B]."""
    return mean_over((found - wanted).square().mean(2), mask)


DISTANCES = {"d_axis": d_axis, "t_axis": t_axis, "squared": squared}
