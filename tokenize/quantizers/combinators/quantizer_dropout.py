"""Quantizer bypass: some training samples are not quantized, so the decoder also learns from continuous latents.

Source: Mimi, which skips quantization at a given rate, arXiv:2410.00037.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from ....configs.schema import Config
from ..base import MakeQuantizer, QuantizerOutput
from .wrapper import Wrapper

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class SkipConfig(Config):
    """Bypass sampled per training sample."""

    kind: Literal["skip"] = "skip"
    share: float = Field(ge=0, le=1)
    """Fraction of training samples that are not quantized; their codes are -1 and update no codebook."""
    quantizer: QuantizerConfig
    """Quantizer of the other samples."""


class SkippingQuantizer(Wrapper):
    """Bypasses the inner quantizer for a random part of the training samples."""

    def __init__(self, config: SkipConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        super().__init__(make(config.quantizer, dim, depth, f"{where}.quantizer"))
        self.config = config

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize."""
        if not self.training or not self.config.share:
            return self.inner.quantize(x, mask)
        passed = self.draw_passed(x.shape[0]).to(x.device)[:, None].expand(x.shape[:2])
        kept = ~passed if mask is None else mask & ~passed
        part = self.inner.quantize(torch.where(kept[..., None], x, 0.0), kept)
        return QuantizerOutput(torch.where(passed[..., None], x.detach(), part.vectors), part.codes, part.losses)

    def draw_passed(self, num_samples: int) -> Tensor:
        """Sample which samples stay unquantized, [B] bool, from torch's global generator."""
        return torch.rand(num_samples) < self.config.share
