"""Vector quantization: each latent becomes the nearest of V learned vectors.

Source: VQ-VAE, arXiv:1711.00937, moving averages from its appendix A.1; a small, normalised space: arXiv:2110.04627.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from .codebook import Codebook
from .config import Config
from .kmeans import exact_dtype, nearest_code
from .quantized import Parts, Quantizer


class VQConfig(Config):
    """One codebook of learned vectors."""

    kind: Literal["vq"] = "vq"
    size: PositiveInt
    """Number of codes, V."""
    code_dim: PositiveInt | None = None
    """Search in a space of this many dimensions, projected in and out by learned layers; null: in the latent space."""
    normalise: bool = False
    """Put latents and codes on the unit sphere before the search (cosine similarity)."""
    update: Literal["ema", "gradient"] = "ema"
    """How codes move: moving averages of the latents assigned to them, or the gradient of the codebook loss."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the moving averages, per update; counts of uses are averaged under "gradient" too, for revival."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the loss that pulls latents to their codes."""
    revive_below: float = Field(default=0.1, ge=0, lt=1)
    """A code used less than this fraction of the uniform share is dead and becomes a latent of the batch; 0: never."""
    kmeans_init: bool = True
    """Start the codes as k-means centres of the first latents; false: at random."""


class VectorQuantizer(Quantizer):
    """See the head of this file. Q = 1."""

    def __init__(self, config: VQConfig, dim: int, depth: int = 0):
        super().__init__(dim, [config.size])
        self.config = config
        code_dim = config.code_dim or dim
        self.project_in = nn.Linear(dim, code_dim) if config.code_dim else None
        self.project_out = nn.Linear(code_dim, dim) if config.code_dim else None
        self.codebook = Codebook(
            config.size,
            code_dim,
            normalise=config.normalise,
            learned=config.update == "gradient",
            decay=config.decay,
            revive_below=config.revive_below,
            kmeans_start=config.kmeans_init,
        )

    def quantize(self, x: Tensor, mask: Tensor | None) -> Parts:
        """See Quantizer.quantize. Losses: "commitment", and "codebook" where there are parameters to train."""
        flat, valid = x.detach().flatten(0, 1), None if mask is None else mask.flatten()
        keys, entries = self._keys(flat), self.codebook.entries()
        codes = nearest_code(keys, entries, exact=not self.training)
        if self.training:
            self.codebook.collect(keys, codes, valid)
        vectors = F.embedding(codes, self._project_out(entries))
        if self.project_in is not None and self.project_out is not None:
            # Adds exactly 0, and leads the gradient straight through the choice of the code into the projection in.
            keys = self._keys(flat, torch.float32)
            vectors = vectors + (keys - keys.detach()) @ self.project_out.weight.float().T
        if valid is not None:
            codes = codes.masked_fill(~valid, -1)
            vectors = torch.where(valid[:, None], vectors, 0.0)
        vectors = vectors.view_as(x)
        losses = {"commitment": self.config.commitment * (x - vectors.detach()).square().mean(dim=-1)}
        if self.codebook.learned or self.project_in is not None:
            losses["codebook"] = (x.detach() - vectors).square().mean(dim=-1)
        return Parts(vectors, codes.view(*x.shape[:2], 1), losses)

    def search(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, 1]."""
        return nearest_code(self._keys(x), self.codebook.entries())[:, None]

    def lookup(self, codes: Tensor) -> Tensor:
        """[N, 1] -> [N, D]."""
        table = self._project_out(self.codebook.entries())
        return torch.where(codes >= 0, F.embedding(codes[:, 0].clamp_min(0), table), 0.0)

    def vectors(self) -> Tensor:
        """[1, V, D]."""
        return self._project_out(self.codebook.entries())[None]

    def _project_out(self, entries: Tensor) -> Tensor:
        """Code vectors [V, code_dim] -> [V, D]. Always the whole table: one shape, so the same bits every time."""
        if self.project_out is None:
            return entries
        return F.linear(entries, self.project_out.weight.float(), self.project_out.bias.float())

    def _keys(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Latents [N, D] -> where to look them up [N, code_dim], in float64: no rounding reaches the choice."""
        x = x if self.project_in is None else project(self.project_in, x, dtype)
        return F.normalize(x.to(dtype or exact_dtype(x)), dim=-1) if self.config.normalise else x


def project(layer: nn.Linear, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A linear layer in `dtype`, by default float64: what depends on the number of rows is then far below float32."""
    dtype = dtype or exact_dtype(x)
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
