"""Binary spherical quantization: latents on the unit sphere, their signs times 1 / sqrt(bits), so codes lie there too.

Source: arXiv:2406.07548.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from .binary import BinaryConfig, BinaryQuantizer


class BSQConfig(BinaryConfig):
    """Signs, of normalised latents."""

    kind: Literal["bsq"] = "bsq"


class BinarySphericalQuantizer(BinaryQuantizer):
    """See the head of this file. Q = 1."""

    def code_scale(self) -> float:
        """1 / sqrt(bits): a code's norm is 1."""
        return self.config.bits**-0.5

    def before_sign(self, z: Tensor) -> Tensor:
        """On the sphere of the codes."""
        return F.normalize(z, dim=-1) * (self.scale * self.config.bits**0.5)
