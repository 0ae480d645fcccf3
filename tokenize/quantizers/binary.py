"""Binary quantizers: each of a few dimensions gives one bit, its sign; a code is all the bits, without a table.

    lfq          signs of the latents; MAGVIT-2, arXiv:2310.05737
    bsq          signs of the latents on the unit sphere, times 1 / sqrt(bits), so that codes lie on it too;
                 arXiv:2406.07548
    bernoulli    each bit is sampled with probability sigmoid(z) in training and is the likelier value in eval mode;
                 Binary Latent Diffusion, arXiv:2304.04820

They differ in what happens before and after the sign. A code of d bits is assembled as int64 from integers: float sums
give wrong codes (bf16 from 9 bits on, float32 from 25). Entropies are exact bit by bit, because the soft assignment
over all 2^d codes factorizes over bits (see regularization.py): with p = softmax(-|u - c|^2 / T) over codes c in
{-s, s}^d, bit i is 1 with probability sigmoid(4 s u_i / T).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, ConfigError
from .base import Quantizer, QuantizerOutput
from .codebooks.nearest import exact_dtype
from .fsq import MAX_TABLE
from .projection import project, straight_through
from .regularization import BitEntropyConfig, bit_entropies

MAX_GROUP = 12


class BinaryConfig(Config):
    """Base config of lfq, bsq and bernoulli."""

    bits: Annotated[int, Field(ge=1, le=62)]
    """Bits of a code; there are V = 2^bits codes. Latents of another dimension are projected in and out."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the loss that keeps latents near their codes."""
    entropy: BitEntropyConfig | None = None
    """Entropy loss for confident bits and uniform code usage, in training only; null: none."""


class BinaryQuantizer(Quantizer):
    """Base class of the binary quantizers. Q = 1. `depth`: its level in a residual; each level has half the scale."""

    powers: Tensor

    def __init__(self, config: BinaryConfig, dim: int, depth: int = 0, where: str = "quantizer"):
        super().__init__(dim, [1 << config.bits])
        if config.entropy is not None and config.entropy.group > MAX_GROUP:
            raise ConfigError(
                f"{where}.entropy.group: {config.entropy.group} bits are too many for a table; use at most 12"
            )
        self.config = config
        self.project_in = nn.Linear(dim, config.bits) if dim != config.bits else None
        self.project_out = nn.Linear(config.bits, dim) if dim != config.bits else None
        self.register_buffer("powers", 1 << torch.arange(config.bits), persistent=False)
        self.scale = self.code_scale() * 0.5**depth

    def code_scale(self) -> float:
        """Magnitude of a bit's value, which is plus or minus this."""
        return 1.0

    def before_sign(self, z: Tensor) -> Tensor:
        """Map z [N, d] to the input of the sign, on the same scale as the code values."""
        return z

    def logits(self, u: Tensor, temperature: float) -> Tensor:
        """Logits that each bit is 1, for the entropies."""
        return 4 * self.scale / temperature * u

    def draw(self, u: Tensor) -> Tensor:
        """Bits in training: [N, d] -> bool."""
        return u > 0

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Losses: "commitment", "entropy" if configured, "codebook" if it has projections."""
        flat, valid = x.flatten(0, 1), None if mask is None else mask.flatten()
        u = self._inner(flat.detach())
        codes = self._join(self.draw(u.detach()) if self.training else u.detach() > 0)
        vectors = self._values(codes)
        if self.project_out is not None:
            vectors = vectors + straight_through(u.float(), self.project_out)
        attached = self._inner(flat).float()
        signs = self._signs(codes)
        losses = {"commitment": self.config.commitment * (attached - signs).square().mean(dim=-1)}
        if self.project_in is not None:
            losses["codebook"] = (flat.detach() - vectors).square().mean(dim=-1)
        wanted = self.config.entropy
        if wanted is not None and self.training:
            per_token, over_batch = bit_entropies(self.logits(attached, wanted.temperature), wanted.group, valid)
            losses["entropy"] = wanted.sample * per_token - wanted.batch * over_batch
        codes = codes[:, None]
        if valid is not None:
            codes = codes.masked_fill(~valid[:, None], -1)
            vectors = torch.where(valid[:, None], vectors, 0.0)
            losses = {name: torch.where(valid, loss, 0.0) for name, loss in losses.items()}
        shape = x.shape[:2]
        losses = {name: loss.view(shape) for name, loss in losses.items()}
        return QuantizerOutput(vectors.view_as(x), codes.view(*shape, 1), losses)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, 1]."""
        return self._join(self._inner(x.flatten(0, 1)) > 0).view(*x.shape[:2], 1)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, 1] -> [B, M, D]."""
        values = self._values(codes.flatten().clamp_min(0))
        return torch.where(codes >= 0, values.view(*codes.shape[:2], self.dim), 0.0)

    def vectors(self) -> Tensor:
        """[1, V, D]; ValueError above 4 million codes: the table would be too large."""
        size = self.cardinalities[0]
        if size > MAX_TABLE:
            raise ValueError(f"{size} binary codes have no table of vectors (limit {MAX_TABLE}); use decode(codes)")
        return self.decode(torch.arange(size, device=self.powers.device)[:, None])[None]

    def _inner(self, x: Tensor) -> Tensor:
        """[N, D] -> input of the sign [N, d], in float64 so that rounding cannot change a sign."""
        z = x.to(exact_dtype(x)) if self.project_in is None else project(self.project_in, x)
        return self.before_sign(z)

    def _join(self, bits: Tensor) -> Tensor:
        """Bits [N, d] -> codes [N]."""
        return (bits * self.powers).sum(dim=-1)

    def _signs(self, codes: Tensor) -> Tensor:
        """Codes [N] -> [N, d], plus or minus `scale`."""
        return ((codes[:, None] & self.powers) != 0).float() * (2 * self.scale) - self.scale

    def _values(self, codes: Tensor) -> Tensor:
        """Codes [N] -> [N, D]. Projects column by column: a matrix product's rounding can depend on the row count."""
        signs = self._signs(codes)
        if self.project_out is None:
            return signs
        weight, bias = self.project_out.weight.float(), self.project_out.bias.float()
        out = bias.expand(len(signs), -1)
        for bit in range(signs.shape[1]):
            out = out + signs[:, bit, None] * weight[:, bit]
        return out


class LFQConfig(BinaryConfig):
    """Signs of the latents; bits have the values -1 and 1."""

    kind: Literal["lfq"] = "lfq"


class LookupFreeQuantizer(BinaryQuantizer):
    """Lookup-free quantization. Q = 1."""


class BSQConfig(BinaryConfig):
    """Signs of the normalized latents."""

    kind: Literal["bsq"] = "bsq"


class BinarySphericalQuantizer(BinaryQuantizer):
    """Binary spherical quantization. Q = 1."""

    def code_scale(self) -> float:
        """1 / sqrt(bits): a code's norm is 1."""
        return self.config.bits**-0.5

    def before_sign(self, z: Tensor) -> Tensor:
        """Project onto the sphere of the codes."""
        return F.normalize(z, dim=-1) * (self.scale * self.config.bits**0.5)


class BernoulliConfig(BinaryConfig):
    """Random signs with the latents as log-odds; bits have the values -1 and 1."""

    kind: Literal["bernoulli"] = "bernoulli"
    commitment: float = 0.0
    """Weight of the loss that keeps latents near -1 and 1; log-odds do not need it."""


class BernoulliQuantizer(BinaryQuantizer):
    """Bernoulli quantizer. Q = 1."""

    def draw(self, u: Tensor) -> Tensor:
        """Sample the bits from torch's global generator."""
        return torch.rand(u.shape, dtype=u.dtype, device=u.device) < torch.sigmoid(u)

    def logits(self, u: Tensor, temperature: float) -> Tensor:
        """The latents over the temperature; 1 gives the sampling probabilities."""
        return u / temperature
