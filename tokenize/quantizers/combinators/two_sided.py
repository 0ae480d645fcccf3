"""A quantizer whose codes are searched among one set of code vectors and looked up among another.

    encode   latents ──► nearest codes of `search` ──► codes
    decode   codes ──► code vectors of `lookup` ──► latents of the decoder

Source: Qwen3-TTS (arXiv:2601.15621), whose encoder and decoder have separate codebooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ....configs.schema import Config, ConfigError
from ..base import MakeQuantizer, Quantizer, QuantizerOutput, add_losses

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class TwoSidedConfig(Config):
    """Two quantizers with codebooks of equal sizes."""

    kind: Literal["two_sided"] = "two_sided"
    search: QuantizerConfig
    """Chooses the codes. It is trained as if it were alone."""
    lookup: QuantizerConfig
    """Gives the vectors of the codes. Only what is trained by gradient is: codebooks need `update: gradient`."""


class TwoSidedQuantizer(Quantizer):
    """Codes of one quantizer, code vectors of another."""

    def __init__(self, config: TwoSidedConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        searched = make(config.search, dim, depth, f"{where}.search")
        looked_up = make(config.lookup, dim, depth, f"{where}.lookup")
        if searched.cardinalities != looked_up.cardinalities:
            raise ConfigError(
                f"{where}: search has {list(searched.cardinalities)} codes and lookup {list(looked_up.cardinalities)}; "
                "make them equal"
            )
        super().__init__(dim, [searched])
        self.config = config
        self.searched, self.looked_up = searched, looked_up
        self.span = searched.span

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Adds the loss "codebook", which trains the vectors of `lookup`."""
        part = self.searched.quantize(x, mask)
        vectors = self.looked_up.lookup(part.codes)
        losses = dict(part.losses)
        own = (x.detach() - vectors).square().mean(dim=-1)
        kept = (part.codes >= 0).any(dim=-1)
        add_losses(losses, {"codebook": torch.where(kept, own, 0.0)})
        return QuantizerOutput(vectors, part.codes, losses)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        return self.searched.search(x, mask)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, Q] -> [B, M, D]."""
        return self.looked_up.lookup(codes)

    def vectors(self) -> Tensor:
        """[Q, V, D]."""
        return self.looked_up.vectors()

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See Quantizer.rate."""
        return self.searched.rate(codes)

    def fit_parts(self, x: Tensor) -> bool:
        """Fit both."""
        return any([part.fit_parts(x) for part in (self.searched, self.looked_up)])
