"""Several codebooks with one shared index: the code minimizes the weighted sum of distances in all of them.

    code = argmin_v  sum over parts  weight * |x part - e part [v]|^2     value = e part 0 [code] | e part 1 [code] | ..

Parts are consecutive ranges of channels, for example a semantic half and a pixel half.
Source: TokenFlow, arXiv:2412.03069.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from ...configs.schema import Config, ConfigError
from .codebooks.nearest import exact_dtype
from .vq import VectorQuantizer, VQConfig


class SharedPartConfig(Config):
    """One of the codebooks."""

    channels: PositiveInt
    """Number of channels of this part."""
    weight: PositiveFloat = 1.0
    """Weight of this part's squared distance in the sum that the code minimizes."""
    normalise: bool = False
    """Compare directions only; its code vectors have norm 1."""


class SharedIndexConfig(Config):
    """Named codebooks that share one index."""

    kind: Literal["shared_index"] = "shared_index"
    size: PositiveInt
    """Number of codes, V."""
    parts: Annotated[dict[str, SharedPartConfig], Field(min_length=1)]
    """Part name -> part, in channel order; their channels must add up to those of the latents."""
    update: Literal["ema", "gradient"] = "ema"
    """How codes are updated. ema: moving averages of the latents assigned to them. gradient: by the codebook loss."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the moving averages per update; usage counts are averaged with every kind of update, for revival."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the loss that pulls latents towards their codes."""
    revive_below: float = Field(default=0.1, ge=0, lt=1)
    """A code used less than this fraction of the uniform share is dead and is replaced by a latent; 0: never."""
    kmeans_init: bool = True
    """Initialize the codes with the k-means centers of the first latents; false: randomly."""


class SharedIndexQuantizer(VectorQuantizer):
    """Shared-index quantizer: a vq in a space where each part is scaled by the root of its weight. Q = 1."""

    def __init__(self, config: SharedIndexConfig, dim: int, depth: int = 0, where: str = "quantizer"):
        self.widths = [part.channels for part in config.parts.values()]
        if sum(self.widths) != dim:
            raise ConfigError(
                f"{where}.parts: they have {sum(self.widths)} channels in total, but the latents have {dim}"
            )
        same = config.model_dump(exclude={"kind", "parts"})
        super().__init__(VQConfig(**same), dim, depth, where)
        self.parts = list(config.parts.values())

    def _keys(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Scaled latents [N, D], by default float64."""
        parts = x.to(dtype or exact_dtype(x)).split(self.widths, dim=-1)
        return torch.cat(
            [
                (F.normalize(values, dim=-1) if part.normalise else values) * part.weight**0.5
                for part, values in zip(self.parts, parts, strict=True)
            ],
            dim=-1,
        )

    def _places(self, entries: Tensor) -> Tensor:
        """Code vectors in the scaled search space; normalized parts are put on the sphere."""
        parts = entries.split(self.widths, dim=-1)
        return torch.cat(
            [
                F.normalize(values, dim=-1) * part.weight**0.5 if part.normalise else values
                for part, values in zip(self.parts, parts, strict=True)
            ],
            dim=-1,
        )

    def _project_out(self, entries: Tensor) -> Tensor:
        """Stored code vectors -> code vectors in latent space."""
        parts = self._places(entries).split(self.widths, dim=-1)
        return torch.cat([values / part.weight**0.5 for part, values in zip(self.parts, parts, strict=True)], dim=-1)
