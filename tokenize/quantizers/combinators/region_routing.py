"""Variable-rate image codes: a router gives each region either one code or one code per position.

    2 x 2 regions of        coarse: the mean of the positions is   codes  a a b c        stored    a  b c
    a grid with 4 columns   quantized, and all share its code             a a d e                     d e
                            fine: every position is quantized

Codes have all positions, repeated in coarse regions, so consumers of codes need no changes; `rate` counts the codes to
store. The router is a small network; its inputs are, per channel, the mean of a region's positions and the logarithm
of their standard deviation. In training it samples (Gumbel), in eval mode it takes the likelier choice. It learns from
the gradient of the values along the direction from the mean to the positions, and from the budget loss:

    weight * (fraction of fine regions in the batch over all processes - wanted fraction)^2

Source: DQ-VAE, arXiv:2305.11718, section 3.1. There a network computes the coarse latents; here they are the means.
There the fraction is that of the sampled choices; here it is that of eval mode, without noise: otherwise an uncertain
router would sample the wanted fraction, but make all regions coarse in eval mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ....configs.schema import Config, ConfigError
from ...spec import AudioGeometry, ImageGeometry
from ..base import MakeQuantizer, Quantizer, QuantizerOutput
from ..codebooks.nearest import exact_dtype
from ..projection import project
from ..regularization import mean_over_batch
from .strided import StridedQuantizer
from .wrapper import Wrapper

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


SMALLEST = 1e-3
"""Added to deviations, so that the logarithm stays finite if all positions are equal."""


class RegionsConfig(Config):
    """Regions of an image grid whose positions are in raster order."""

    kind: Literal["regions"] = "regions"
    columns: PositiveInt
    """Columns of the grid."""
    side: int = Field(default=2, ge=2)
    """Rows and columns of a region; must divide those of the grid."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Wanted fraction of fine regions."""
    budget: NonNegativeFloat = 1.0
    """Weight of the loss that pulls the fraction of fine regions towards `share`."""
    noise: NonNegativeFloat = 1.0
    """Scale of the Gumbel noise; 0: training takes the likelier choice, too."""
    quantizer: QuantizerConfig
    """Quantizer of the positions of fine regions and the means of coarse regions."""

    @model_validator(mode="after")
    def _fits_together(self) -> RegionsConfig:
        if self.columns % self.side:
            raise ValueError(f"regions of {self.side} columns do not divide rows of {self.columns}; choose a divisor")
        return self


class RegionsQuantizer(Wrapper):
    """Quantizes each region coarsely or finely, as a learned router chooses."""

    def __init__(self, config: RegionsConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        super().__init__(make(config.quantizer, dim, depth, f"{where}.quantizer"))
        if self.inner.span != 1:
            raise ConfigError(
                f"{where}.quantizer: '{config.quantizer.kind}' quantizes several positions jointly, but those "
                "of a region are quantized one by one; use a leaf such as vq, or a residual or group of them"
            )
        self.config, self.where = config, where
        self.span = config.side * config.columns
        self.hidden = nn.Linear(2 * dim, 2 * dim)
        self.choice = nn.Linear(2 * dim, 1)

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Adds the loss "budget" in training.

        The losses of a coarse region's single code are divided among its positions.
        """
        cells, valid = self._cut_with_mask(x, mask)
        means, logits = self._route(cells, valid)
        noise = self.config.noise if self.training else 0.0
        drawn = logits + noise * self.draw_noise(logits) if noise else logits
        fine = drawn > 0
        part = self.inner.quantize(*self._candidates(cells, means, valid, fine))
        vectors, codes = self._choose(part.vectors, fine), self._choose(part.codes, fine)
        number = valid.sum(dim=-1, keepdim=True).clamp_min(1)
        losses = {}
        for name, loss in part.losses.items():
            once, each = self._split(loss, cells.shape)
            losses[name] = torch.where(fine[..., None], each, once / number)
        if self.training:
            # Adds exactly 0 and passes the gradient of the values to the router.
            soft = torch.sigmoid(drawn).float()
            vectors = vectors + (soft - soft.detach())[..., None, None] * (cells - means[:, :, None]).detach()
            if self.config.budget:
                soft = torch.sigmoid(logits).float()
                share = (logits > 0) + (soft - soft.detach())
                found = mean_over_batch(share.flatten()[:, None], valid.any(dim=-1).flatten())
                losses["budget"] = (self.config.budget * (found - self.config.share).square()).expand(valid.shape)
        places = x.shape[1]
        vectors = torch.where(valid[..., None], vectors, 0.0)
        losses = {name: self._lay(torch.where(valid, loss, 0.0), places) for name, loss in losses.items()}
        return QuantizerOutput(
            self._lay(vectors, places), self._lay(codes.masked_fill(~valid[..., None], -1), places), losses
        )

    def draw_noise(self, logits: Tensor) -> Tensor:
        """Difference of two Gumbel variables per region, in the dtype of logits, from torch's global generator."""
        return torch.logit(torch.rand(logits.shape), eps=1e-6).to(logits)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        cells, valid = self._cut_with_mask(x, mask)
        means, logits = self._route(cells, valid)
        fine = logits > 0
        codes = self.inner.search(*self._candidates(cells, means, valid, fine))
        return self._lay(self._choose(codes, fine), x.shape[1])

    def fit_parts(self, x: Tensor) -> bool:
        """Fit the inner quantizer on the positions and means of [B, M, D] that are quantized."""
        cells, valid = self._cut_with_mask(x, None)
        means, logits = self._route(cells, valid)
        wanted, kept = self._candidates(cells, means, valid, logits > 0)
        return self.inner.fit_parts(wanted[kept][:, None])

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See Quantizer.rate. A region whose positions have equal codes stores them once; a bit per region with several
        positions marks it."""
        cells = self._cut(codes, -1)
        valid = (cells >= 0).any(dim=-1)
        first = cells.amax(dim=2)
        same = ((cells == first[:, :, None]) | ~valid[..., None]).flatten(2).all(dim=-1)
        once, each = first.masked_fill(~same[..., None], -1), cells.masked_fill(same[..., None, None], -1)
        number, bits = self.inner.rate(torch.cat([once, each.flatten(1, 2)], dim=1))
        return number, bits + (valid.sum(dim=-1) > 1).sum(dim=-1)

    def _route(self, cells: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of each region [B, R, D], and its log odds of being fine [B, R] in float64, so that rounding cannot
        change the choice. The log odds pass no gradient to the latents."""
        number = valid.sum(dim=-1, keepdim=True).clamp_min(1)
        # Add sequentially: the summation order of a reduction can depend on the shape.
        total = cells[:, :, 0]
        for place in range(1, cells.shape[2]):
            total = total + cells[:, :, place]
        means = total / number
        away = torch.where(valid[..., None], cells - means[:, :, None], 0.0).detach().to(exact_dtype(cells))
        deviations = (away.square().sum(dim=2) / number).sqrt()
        seen = torch.cat([means.detach().to(away.dtype), (deviations + SMALLEST).log()], dim=-1)
        return means, project(self.choice, F.silu(project(self.hidden, seen)))[..., 0]

    def _candidates(self, cells: Tensor, means: Tensor, valid: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """All candidates for quantization [B, R + R * S, D], means first, and a mask of those that are quantized."""
        kept = torch.cat([valid.any(dim=-1) & ~fine, (valid & fine[..., None]).flatten(1)], dim=1)
        wanted = torch.cat([means, cells.flatten(1, 2)], dim=1)
        return torch.where(kept[..., None], wanted, 0.0), kept

    def _split(self, found: Tensor, cells: torch.Size) -> tuple[Tensor, Tensor]:
        """Results for the candidates [B, R + R * S, *] -> for the means [B, R, 1, *] and the positions [B, R, S, *]."""
        once, each = found.split([cells[1], cells[1] * cells[2]], dim=1)
        return once[:, :, None], each.reshape(*cells[:3], *found.shape[2:])

    def _choose(self, found: Tensor, fine: Tensor) -> Tensor:
        """Results for the candidates [B, R + R * S, *] -> for every position [B, R, S, *]."""
        once, each = self._split(found, torch.Size((*fine.shape, self.config.side**2)))
        return torch.where(fine[..., None, None], each, once)

    def _cut_with_mask(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents [B, M, D] -> [B, R, S, D], and which positions are valid [B, R, S]."""
        valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        return self._cut(x, 0), self._cut(valid[..., None], False)[..., 0]

    def _cut(self, x: Tensor, filling: float) -> Tensor:
        """[B, M, *] -> regions in raster order [B, R, S, *], S = side * side; missing positions are padded."""
        side, across = self.config.side, self.config.columns // self.config.side
        whole = F.pad(x, (0, 0, 0, -x.shape[1] % self.span), value=filling)
        bands = whole.shape[1] // self.span
        cells = whole.view(len(x), bands, side, across, side, x.shape[2]).transpose(2, 3)
        return cells.reshape(len(x), bands * across, side * side, x.shape[2])

    def _lay(self, cells: Tensor, places: int) -> Tensor:
        """Inverse of `_cut`: [B, R, S, *] -> [B, M, *]."""
        side, across = self.config.side, self.config.columns // self.config.side
        bands, rest = cells.shape[1] // across, cells.shape[3:]
        rows = cells.reshape(len(cells), bands, across, side, side, *rest).transpose(2, 3)
        return rows.reshape(len(cells), bands * self.span, *rest)[:, :places]


def check_regions(quantizer: Quantizer, geometry: AudioGeometry | ImageGeometry) -> None:
    """Raise ConfigError, with the path of the node, if a quantizer has regions that do not fit the geometry."""
    for part in quantizer.modules():
        if isinstance(part, StridedQuantizer) and part.every > 1:
            for inner in part.modules():
                if isinstance(inner, RegionsQuantizer):
                    raise ConfigError(f"{inner.where}: inside stride there is no grid; use one of them")
        if not isinstance(part, RegionsQuantizer):
            continue
        side, columns = part.config.side, part.config.columns
        if isinstance(geometry, AudioGeometry):
            raise ConfigError(f"{part.where}: regions need the grid of an image, audio has none; use stride")
        if columns != geometry.columns:
            raise ConfigError(
                f"{part.where}.columns: {columns}, but the network makes a grid of {geometry.rows} x "
                f"{geometry.columns}; set columns: {geometry.columns}"
            )
        if geometry.rows % side:
            raise ConfigError(
                f"{part.where}.side: regions of {side} x {side} do not divide a grid of {geometry.rows} x "
                f"{geometry.columns}; choose a divisor of both"
            )
