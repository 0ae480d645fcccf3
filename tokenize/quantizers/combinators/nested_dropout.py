"""Nested dropout: drops the tail of a 1-D token sequence in training, so that every prefix decodes well.

A length is sampled for each sample. Source: One-D-Piece, arXiv:2501.10064 (which uses one length per batch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ....configs.schema import Config
from ..base import MakeQuantizer, QuantizerOutput
from .wrapper import Wrapper

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class TailConfig(Config):
    """Positions are tokens in order of importance; a random number of the last ones is dropped in training."""

    kind: Literal["tail"] = "tail"
    shortest: PositiveInt = 1
    """Number of tokens that are never dropped."""
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Numbers of tokens to sample from, equally likely; null: every number from `shortest` to all."""
    share: float = Field(default=1.0, ge=0, le=1)
    """Fraction of training samples with a random length; the others keep all tokens."""
    quantizer: QuantizerConfig
    """Quantizer of every token; dropped tokens have code -1 and value 0."""


class TailQuantizer(Wrapper):
    """Applies nested dropout to the tokens of the inner quantizer."""

    def __init__(self, config: TailConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        super().__init__(make(config.quantizer, dim, depth, f"{where}.quantizer"))
        self.config = config

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize."""
        if not self.training or not self.config.share:
            return self.inner.quantize(x, mask)
        lengths = self.draw_lengths(*x.shape[:2]).to(x.device)
        kept = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        kept = kept if mask is None else kept & mask
        return self.inner.quantize(torch.where(kept[..., None], x, 0.0), kept)

    def draw_lengths(self, num_samples: int, places: int) -> Tensor:
        """Sample how many of its `places` positions each sample keeps, [B] long, from torch's global generator."""
        dropped = torch.rand(num_samples) < self.config.share
        if self.config.lengths is None:
            shortest = min(self.config.shortest, places)
            drawn = torch.randint(shortest, places + 1, (num_samples,))
        else:
            drawn = torch.tensor(self.config.lengths)[torch.randint(len(self.config.lengths), (num_samples,))]
        return torch.where(dropped, drawn, places)
