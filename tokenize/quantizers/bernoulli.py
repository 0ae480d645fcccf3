"""Bernoulli codes: each bit is drawn with probability sigmoid(z) while training, and is the likelier value afterwards.

Source: Binary Latent Diffusion, arXiv:2304.04820.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .binary import BinaryConfig, BinaryQuantizer


class BernoulliConfig(BinaryConfig):
    """Random signs; the latents are log-odds. Bits have values of -1 and 1."""

    kind: Literal["bernoulli"] = "bernoulli"
    commitment: float = 0.0
    """Weight of the loss that keeps latents near -1 and 1; log-odds need none."""


class BernoulliQuantizer(BinaryQuantizer):
    """See the head of this file. Q = 1."""

    def draw(self, u: Tensor) -> Tensor:
        """Bits drawn from torch's global generator."""
        return torch.rand(u.shape, dtype=u.dtype, device=u.device) < torch.sigmoid(u)

    def logits(self, u: Tensor, temperature: float) -> Tensor:
        """The latents themselves; a temperature of 1 is the model's own."""
        return u / temperature
