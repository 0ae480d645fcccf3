"""Scalar quantizers: each channel has its own codebook of V numbers and takes the nearest one, Q = D.

`learned` values are trained by the codebook loss (latent quantization, arXiv:2305.18378). `quantile` values are fitted
to a trained continuous autoencoder by `Quantizer.fit`: with z the standardized latent, bin edges are the quantiles of a
normal distribution, clamped to +-3, and the value of a bin is the mean of z inside it,
(pdf(a) - pdf(b)) / (cdf(b) - cdf(a)) (TokenBridge, arXiv:2503.16430).

`lattice` is a learned diagonal lattice: each channel is rounded to a multiple of its learned spacing, D parameters in
total (LL-VQ-VAE, arXiv:2310.09382, the diagonal case).
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from ...configs.schema import Config
from .base import Quantizer, QuantizerOutput
from .codebooks.codebook import Float32Buffers
from .codebooks.nearest import exact_dtype

FARTHEST = 3.0
"""Largest quantile bin edge, in standard deviations."""


class ScalarConfig(Config):
    """V values per channel: V to the power of D combinations, as D codes."""

    kind: Literal["scalar"] = "scalar"
    size: Annotated[int, Field(ge=2)]
    """Values per channel, V."""
    values: Literal["learned", "quantile"] = "learned"
    """learned: trained with the network. quantile: fitted to the latents of a trained network."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the loss that pulls latents towards their values."""


class PerChannelQuantizer(Quantizer):
    """Base class of scalar and lattice: digits [N, D] <-> values [N, D], Q = D."""

    learns = True

    def digits(self, x: Tensor) -> Tensor:
        """Latents [N, D] -> long [N, D]."""
        raise NotImplementedError

    def values(self, digits: Tensor) -> Tensor:
        """[N, D] long -> [N, D] float32, with gradients to the learned parameters."""
        raise NotImplementedError

    def commitment(self) -> float:
        """Weight of the commitment loss."""
        raise NotImplementedError

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Losses: "commitment", and "codebook" if values are learned."""
        codes = self.search(x.detach())
        if mask is not None:
            codes = codes.masked_fill(~mask[..., None], -1)
        vectors = self.lookup(codes)
        losses = {"commitment": self.commitment() * (x - vectors.detach()).square().mean(dim=-1)}
        if self.learns:
            losses["codebook"] = (x.detach() - vectors).square().mean(dim=-1)
        return QuantizerOutput(vectors, codes, losses)

    @torch.no_grad()
    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, D] long."""
        return self.digits(x.flatten(0, 1).to(exact_dtype(x))).view(x.shape)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, D] long -> [B, M, D]."""
        values = self.values(codes.clamp_min(0).flatten(0, 1)).view(codes.shape)
        return torch.where(codes >= 0, values, 0.0)

    def vectors(self) -> Tensor:
        """[D, V, D]: a code of channel d is zero in all other channels."""
        size = self.cardinalities[0]
        device = next(chain(self.parameters(), self.buffers())).device
        values = self.values(torch.arange(size, device=device)[:, None].expand(size, self.dim))
        return torch.diag_embed(values).transpose(0, 1)  # [V, D, D], code v on the diagonal -> [D, V, D]


class ScalarQuantizer(Float32Buffers, PerChannelQuantizer):
    """Scalar quantizer with learned or quantile values. Q = D."""

    centre: Tensor
    spread: Tensor

    def __init__(self, config: ScalarConfig, dim: int, depth: int = 0, where: str = "quantizer"):
        super().__init__(dim, [config.size] * dim)
        self.config = config
        self.learns = config.values == "learned"
        scale = float(config.size - 1) ** -depth
        if self.learns:
            self.table = nn.Parameter((scale * torch.linspace(-1, 1, config.size)).repeat(dim, 1))
        else:
            self.register_buffer("centre", torch.zeros(dim))
            self.register_buffer("spread", torch.full((dim,), scale))
            self.normal = tuple(normal_centroids(config.size))

    def commitment(self) -> float:
        """See PerChannelQuantizer."""
        return self.config.commitment

    def tables(self) -> Tensor:
        """The values of each channel [D, V], float32."""
        if self.learns:
            return self.table.float()
        normal = torch.tensor(self.normal, device=self.centre.device)
        return self.centre[:, None] + self.spread[:, None] * normal

    def digits(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D], the nearest value; the smaller value wins a tie."""
        ordered, number = self.tables().to(x.dtype).sort(dim=1, stable=True)
        borders = (ordered[:, 1:] + ordered[:, :-1]) / 2
        rank = torch.searchsorted(borders.contiguous(), x.T.contiguous())
        return number.gather(1, rank).T

    def values(self, digits: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return self.tables().gather(1, digits.T).T

    def fit_parts(self, x: Tensor) -> bool:
        """Fit the mean and standard deviation of each channel of [B, M, D]; does nothing if values are learned."""
        if self.learns:
            return False
        rows = x.flatten(0, 1).to(exact_dtype(x))
        self.centre.copy_(rows.mean(dim=0))
        self.spread.copy_(rows.std(dim=0, correction=0))
        return True


def normal_centroids(size: int) -> list[float]:
    """Mean of a standard normal inside each of `size` equally likely bins with edges clamped to +-3."""
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    edges = normal.icdf(torch.linspace(0, 1, size + 1, dtype=torch.float64)[1:-1]).clamp(-FARTHEST, FARTHEST)
    density = torch.cat([edges.new_zeros(1), normal.log_prob(edges).exp(), edges.new_zeros(1)])
    below = torch.cat([edges.new_zeros(1), normal.cdf(edges), edges.new_ones(1)])
    mass = below[1:] - below[:-1]
    ends = torch.cat([edges[:1], edges])  # an empty bin (both edges clamped) gets the value of its edge
    return torch.where(mass > 0, (density[:-1] - density[1:]) / mass.clamp_min(1e-300), ends).tolist()


class LatticeConfig(Config):
    """Points of a lattice; Q = D codes, one per channel."""

    kind: Literal["lattice"] = "lattice"
    size: Annotated[int, Field(ge=2)]
    """Number of multiples of the spacing per channel, centered on 0; latents beyond are clamped."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the loss that pulls latents towards their points."""


class LatticeQuantizer(PerChannelQuantizer):
    """Learned diagonal lattice quantizer. Q = D."""

    def __init__(self, config: LatticeConfig, dim: int, depth: int = 0, where: str = "quantizer"):
        super().__init__(dim, [config.size] * dim)
        self.config = config
        # Learn the logarithm so that the spacing cannot reach 0. Initially the points cover -1 .. 1.
        first = math.log(2 / (config.size - 1)) - depth * math.log(config.size - 1)
        self.log_spacing = nn.Parameter(torch.full((dim,), first))

    def commitment(self) -> float:
        """See PerChannelQuantizer."""
        return self.config.commitment

    def digits(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        steps = x / self.log_spacing.float().exp() + (self.config.size - 1) / 2
        return steps.round().nan_to_num().clamp(0, self.config.size - 1).long()

    def values(self, digits: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return (digits - (self.config.size - 1) / 2) * self.log_spacing.float().exp()
