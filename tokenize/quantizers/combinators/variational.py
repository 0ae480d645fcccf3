"""A normal distribution before a quantizer: while training, what is quantized is drawn around the latent.

    x ──► mean x, log variance W x + b ──► draw ──► quantizer          in evaluation: x ──► quantizer

The divergence from the standard normal keeps the latents in one region and the draws apart from each other, so that
more of the codes are met. Source: VAEVQ; the divergence: VAE, arXiv:1312.6114.
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
"""Log variances are cut beyond this, either way: their exponentials stay finite."""


class GaussianConfig(Config):
    """Draws for each place."""

    kind: Literal["gaussian"] = "gaussian"
    divergence: NonNegativeFloat = 1e-3
    """Weight of the divergence from the standard normal, in nats per channel."""
    first_deviation: NonNegativeFloat = 0.1
    """Standard deviation of the draws before anything is learned."""
    quantizer: QuantizerConfig
    """Of what is drawn."""


class GaussianQuantizer(Wrapper):
    """See the head of this file."""

    def __init__(self, config: GaussianConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        super().__init__(make(config.quantizer, dim, depth, f"{where}.quantizer"))
        self.config = config
        self.log_variance = nn.Linear(dim, dim)
        nn.init.zeros_(self.log_variance.weight)
        first = torch.tensor(config.first_deviation).log() * 2
        nn.init.constant_(self.log_variance.bias, float(first.clamp(-LARGEST, LARGEST)))

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Besides the losses inside: "divergence"."""
        if not self.training:
            return self.inner.quantize(x, mask)
        weight, bias = self.log_variance.weight.float(), self.log_variance.bias.float()
        log_variance = F.linear(x.detach(), weight, bias).clamp(-LARGEST, LARGEST)
        spread = (log_variance / 2).exp() * self.draw_noise(x)
        own = 0.5 * (x.square() + log_variance.exp() - 1 - log_variance).mean(dim=-1)
        if mask is not None:
            spread, own = torch.where(mask[..., None], spread, 0.0), torch.where(mask, own, 0.0)
        part = self.inner.quantize(x + spread, mask)
        # Adds exactly 0, and leads the gradient straight through the quantizer to the deviation; that of x itself is
        # added around the whole tree.
        kept = (part.codes >= 0).any(dim=-1) if part.codes.shape[-1] else torch.ones_like(own, dtype=torch.bool)
        vectors = part.vectors + torch.where(kept[..., None], spread - spread.detach(), 0.0)
        losses = dict(part.losses)
        add_losses(losses, {"divergence": own}, self.config.divergence)
        return QuantizerOutput(vectors, part.codes, losses)

    def draw_noise(self, x: Tensor) -> Tensor:
        """Standard normal, as x [B, M, D], from torch's global generator."""
        return torch.randn(x.shape, dtype=x.dtype).to(x.device)
