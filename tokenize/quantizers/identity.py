"""Identity quantizer: latents pass unchanged, without codes. A continuous baseline for every quantizer."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...configs.schema import Config
from .base import Quantizer, QuantizerOutput


class IdentityConfig(Config):
    """Q = 0."""

    kind: Literal["identity"] = "identity"


class IdentityQuantizer(Quantizer):
    """Passes latents through unchanged. Q = 0."""

    def __init__(self, config: IdentityConfig, dim: int, depth: int = 0, where: str = "quantizer"):
        super().__init__(dim, [])
        self.config = config

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """The latents themselves, no codes, no losses."""
        return QuantizerOutput(x.detach(), self.search(x), {})

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, 0]."""
        return x.new_zeros(*x.shape[:2], 0).long()

    def lookup(self, codes: Tensor) -> Tensor:
        """Raises ValueError: there are no codes to decode."""
        raise ValueError("an identity quantizer has no codes, so nothing can be decoded; keep the latents")

    def vectors(self) -> Tensor:
        """Raises ValueError, like `lookup`."""
        raise ValueError("an identity quantizer has no code vectors")
