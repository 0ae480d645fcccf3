"""Rotation trick: the gradient is rotated and scaled by the map that takes the latent to its code vector.

    value = q,   d value / d x = |q| / |x| R,   R the rotation, in the plane of x and q, of x to the direction of q

It replaces the straight-through gradient of 1 for the whole inner tree. Source: arXiv:2410.06424.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ....configs.schema import Config, ConfigError
from ..base import MakeQuantizer, QuantizerOutput
from .wrapper import Wrapper

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class RotationConfig(Config):
    """Must be the root of a quantizer tree."""

    kind: Literal["rotation"] = "rotation"
    quantizer: QuantizerConfig
    """Inner quantizer."""


class RotationQuantizer(Wrapper):
    """Replaces the straight-through estimator by the rotation trick."""

    def __init__(self, config: RotationConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        if "." in where:
            raise ConfigError(
                f"{where}: rotation applies to the value of the whole tree; make it the outermost quantizer"
            )
        super().__init__(make(config.quantizer, dim, depth, f"{where}.quantizer"))
        self.config = config

    def estimate(self, x: Tensor, parts: QuantizerOutput) -> Tensor:
        """The vectors, bit-identical, with the gradient of the rotation; it is 0 where x or the vector is 0."""
        vectors = parts.vectors
        if not x.requires_grad:
            return vectors
        with torch.no_grad():
            from_, to = F.normalize(x, dim=-1), F.normalize(vectors, dim=-1)
            scale = vectors.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            between = F.normalize(from_ + to, dim=-1)
        turned = x - 2 * between * (between * x).sum(-1, keepdim=True) + 2 * to * (from_ * x).sum(-1, keepdim=True)
        turned = scale * turned
        return vectors + (turned - turned.detach())
