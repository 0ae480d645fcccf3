"""Frozen k-means: codes are the cluster centers of a frozen network's features; nothing is trained.

The centers come from a file or from `Quantizer.fit` on features. Semantic tokens of speech and images are made so.
Source: HuBERT units, arXiv:2106.07447; SemantiCodec, arXiv:2405.00233.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from ...configs.schema import Config
from .base import Quantizer, QuantizerOutput
from .codebooks.codebook import KMEANS_VECTORS_PER_CODE, Float32Buffers
from .codebooks.nearest import first_by_priority, kmeans, nearest_code
from .codebooks.vector_file import VectorFile, read_vectors


class KMeansConfig(Config):
    """Fixed cluster centers."""

    kind: Literal["kmeans"] = "kmeans"
    size: PositiveInt
    """Number of centers, V."""
    file: VectorFile | None = None
    """File with the centers [V, D]; null: they are fitted."""
    iterations: PositiveInt = 50
    """Iterations of Lloyd's algorithm when fitting."""
    commitment: NonNegativeFloat = 0.0
    """Weight of the loss that pulls latents towards their centers, for a trainable encoder."""


class FittedQuantizer(Float32Buffers, Quantizer):
    """Base class of quantizers whose code vectors are fitted once, not trained. Q = 1."""

    centres: Tensor
    """Code vectors [V, D]."""
    config: Any
    """With `commitment`."""

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Loss: "commitment"."""
        codes = self.search(x.detach())
        if mask is not None:
            codes = codes.masked_fill(~mask[..., None], -1)
        vectors = self.lookup(codes)
        losses = {"commitment": self.config.commitment * (x - vectors).square().mean(dim=-1)}
        return QuantizerOutput(vectors, codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, 1] -> [B, M, D]."""
        return torch.where(codes >= 0, F.embedding(codes[..., 0].clamp_min(0), self.centres), 0.0)


class KMeansQuantizer(FittedQuantizer):
    """Nearest-center quantizer with frozen k-means centers. Q = 1."""

    fitted: Tensor

    def __init__(
        self,
        config: KMeansConfig,
        dim: int,
        depth: int = 0,
        where: str = "quantizer",
        read_files: bool = True,
    ):
        super().__init__(dim, [config.size])
        self.config = config
        centres = torch.zeros(config.size, dim)
        if config.file is not None and read_files:
            centres = read_vectors(config.file, config.size, dim, f"{where}.file")
        self.register_buffer("centres", centres)
        self.register_buffer("fitted", torch.tensor(config.file is not None))

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, 1]. Raises ValueError before the centers are set."""
        if not bool(self.fitted):
            raise ValueError("kmeans has no centers yet; call fit(features) first, or name a file in the config")
        return nearest_code(x.flatten(0, 1), self.centres).view(*x.shape[:2], 1)

    def vectors(self) -> Tensor:
        """[1, V, D]."""
        return self.centres[None]

    def fit_parts(self, x: Tensor) -> bool:
        """Fit the centers to at most 16 * 16 vectors per code of [B, M, D], independently of their order."""
        rows = first_by_priority(x.flatten(0, 1), 0, KMEANS_VECTORS_PER_CODE**2 * self.config.size)
        self.centres.copy_(kmeans(rows, self.config.size, self.config.iterations)[0])
        self.fitted.fill_(True)
        return True
