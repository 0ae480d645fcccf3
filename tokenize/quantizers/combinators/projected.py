"""A quantizer in a projected space: one pair of bias-free linear layers, in and out, around the whole inner quantizer.

Mimi has one such pair around all levels of each residual quantizer (arXiv:2410.00037); `code_dim` of `vq` has one pair
per codebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from ....configs.schema import Config
from ..base import MakeQuantizer, QuantizerOutput
from ..projection import project, straight_through
from .wrapper import Wrapper

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class ProjectConfig(Config):
    """Linear projection, quantizer, linear projection."""

    kind: Literal["project"] = "project"
    dim: PositiveInt
    """Channels of the projected space."""
    quantizer: QuantizerConfig
    """Quantizer in the projected space."""


class ProjectedQuantizer(Wrapper):
    """Quantizes in a projected space. There is no bias, so the projection of a sum of vectors is the sum of theirs."""

    def __init__(self, config: ProjectConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        super().__init__(make(config.quantizer, config.dim, depth, f"{where}.quantizer"))
        self.dim = dim
        self.config = config
        self.project_in = nn.Linear(dim, config.dim, bias=False)
        self.project_out = nn.Linear(config.dim, dim, bias=False)

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Adds the loss "codebook", which trains the projections."""
        part = self.inner.quantize(self._in(x), mask)
        vectors = self._out(part.vectors)
        straight = straight_through(project(self.project_in, x.detach(), torch.float32), self.project_out)
        kept = (part.codes >= 0).any(dim=-1)
        vectors = vectors + torch.where(kept[..., None], straight, 0.0)
        losses = dict(part.losses)
        own = torch.where(kept, (x.detach() - vectors).square().mean(dim=-1), 0.0)
        losses["codebook"] = losses["codebook"] + own if "codebook" in losses else own
        return QuantizerOutput(vectors, part.codes, losses)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        return self.inner.search(self._in(x), mask)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, Q] -> [B, M, D]."""
        return self._out(self.inner.lookup(codes))

    def vectors(self) -> Tensor:
        """[Q, V, D]."""
        return self._out(self.inner.vectors())

    def fit_parts(self, x: Tensor) -> bool:
        """Fit the inner quantizer on projected latents."""
        return self.inner.fit_parts(self._in(x))

    def _in(self, x: Tensor) -> Tensor:
        return project(self.project_in, x).float()

    def _out(self, x: Tensor) -> Tensor:
        return project(self.project_out, x).float()
