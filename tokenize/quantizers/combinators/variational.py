"""Variational latents before a quantizer: in training, the quantizer's input is sampled around the latent.

    x ──► mean x, log variance W x + b ──► sample ──► quantizer          in eval mode: x ──► quantizer

The KL divergence from the standard normal keeps the latents in one region and the samples spread out, so that more of
the codes are used. Source: VAEVQ; the divergence: VAE, arXiv:1312.6114.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from ....configs.schema import Config
from ..base import MakeQuantizer, QuantizerOutput, add_losses
from .wrapper import Wrapper

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py

LARGEST = 10.0
"""Log variances are clamped to +- this, so that their exponentials stay finite."""


class GaussianConfig(Config):
    """Sampling per position."""

    kind: Literal["gaussian"] = "gaussian"
    divergence: NonNegativeFloat = 1e-3
    """Weight of the KL divergence (nats per channel) from the standard normal."""
    first_deviation: NonNegativeFloat = 0.1
    """Initial standard deviation of the samples."""
    quantizer: QuantizerConfig
    """Quantizer of the samples."""


class GaussianQuantizer(Wrapper):
    """Samples around the latent in training, then quantizes."""

    def __init__(self, config: GaussianConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        super().__init__(make(config.quantizer, dim, depth, f"{where}.quantizer"))
        self.config = config
        self.log_variance = nn.Linear(dim, dim)
        nn.init.zeros_(self.log_variance.weight)
        first = torch.tensor(config.first_deviation).log() * 2
        nn.init.constant_(self.log_variance.bias, float(first.clamp(-LARGEST, LARGEST)))

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Adds the loss "divergence"."""
        if not self.training:
            return self.inner.quantize(x, mask)
        weight, bias = self.log_variance.weight.float(), self.log_variance.bias.float()
        log_variance = F.linear(x.detach(), weight, bias).clamp(-LARGEST, LARGEST)
        spread = (log_variance / 2).exp() * self.draw_noise(x)
        own = 0.5 * (x.square() + log_variance.exp() - 1 - log_variance).mean(dim=-1)
        if mask is not None:
            spread, own = torch.where(mask[..., None], spread, 0.0), torch.where(mask, own, 0.0)
        part = self.inner.quantize(x + spread, mask)
        # Adds exactly 0 and passes the straight-through gradient to the deviation; the root adds the gradient of x.
        kept = (part.codes >= 0).any(dim=-1) if part.codes.shape[-1] else torch.ones_like(own, dtype=torch.bool)
        vectors = part.vectors + torch.where(kept[..., None], spread - spread.detach(), 0.0)
        losses = dict(part.losses)
        add_losses(losses, {"divergence": own}, self.config.divergence)
        return QuantizerOutput(vectors, part.codes, losses)

    def draw_noise(self, x: Tensor) -> Tensor:
        """Standard normal noise shaped like x [B, M, D], from torch's global generator."""
        return torch.randn(x.shape, dtype=x.dtype).to(x.device)
