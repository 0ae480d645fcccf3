"""Multi-scale residual quantization (for next-scale prediction) at increasing resolutions of one map.

    sum = 0;   for each scale:   rest = x - sum,   codes = quantize(area mean of rest at this scale),
                                 sum += phi(upsampled code vectors)          phi(u) = u / 2 + conv(u) / 2

Codes do not belong to single positions. In codes [*, M, scales] the first (rows * columns) rows of column s are the
codes of scale s in raster order, and the others are -1. For a 4 x 4 map and scales 1, 2, 4:

    scale 1   c -1 -1 -1 -1 -1 ..        scale 2   c c c c -1 -1 ..        scale 4   c c c c c c c c c c c c c c c c

As frames of one codebook (`to_frames`) they are concatenated without the -1, here 1 + 4 + 16 frames.

A single straight-through gradient goes around the sum. Source: VAR, arXiv:2404.02905.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_serializer
from torch import Tensor, nn
from torch.nn import functional as F

from ....configs.schema import Config, ConfigError
from ..base import MakeQuantizer, Quantizer, QuantizerOutput, add_losses, join_tables
from ..codebooks.nearest import exact_dtype

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class ScalesConfig(Config):
    """Maps of fixed size: all positions of every sample, in raster order."""

    kind: Literal["scales"] = "scales"
    sizes: Annotated[tuple[tuple[PositiveInt, PositiveInt], ...], Field(min_length=1)]
    """Rows and columns of each scale, increasing; the last is the map itself. Audio: [1, frames]."""
    convolutions: int = Field(default=4, ge=0)
    """Number of different phi, spread over the scales; 0: vectors are only upsampled."""
    phi: Literal["var", "even"] = "var"
    """Assignment of phi to scales. var: as in VAR's code (`phi_numbers`). even: as in versions before 2026-12; their
    saved tokenizers keep it."""
    shared: bool = True
    """Use one quantizer, with one codebook, for all scales."""
    quantizer: QuantizerConfig
    """Quantizer of each position of a scale; it gives one code."""

    @model_serializer(mode="wrap")
    def _without_old_meaning(self, handler):
        """Write `phi` only if it differs from what files without it mean (`restore_phi`): this preserves fingerprints
        from before the field existed."""
        scales = len(self.sizes)
        same = phi_numbers(scales, self.convolutions, self.phi) == phi_numbers(scales, self.convolutions, "even")
        return {name: value for name, value in handler(self).items() if name != "phi" or not same}


def restore_phi(saved: Any) -> Any:
    """Fill in a missing `phi` in the data of a saved config: it means "even" there."""
    if isinstance(saved, list):
        return [restore_phi(part) for part in saved]
    if not isinstance(saved, dict):
        return saved
    restored = {name: restore_phi(part) for name, part in saved.items()}
    return {"phi": "even", **restored} if restored.get("kind") == "scales" else restored


def phi_numbers(scales: int, convolutions: int, rule: Literal["var", "even"] = "var") -> list[int]:
    """Index of the convolution of each scale; an empty list if there are none.

    Scale i of S is at i / (S - 1). var: the nearest of K evenly spaced points, the first one in a tie, in float64 as in
    VAR (models/quant.py, PhiPartiallyShared): from 1/12 to 11/12 for K = 4, else from 1 / 2K to 1 - 1 / 2K. Rounding
    decides ties there, and so it does here. even: the points span 0 to 1, ends included; ties go to the even index.
    """
    if not convolutions:
        return []
    last = max(1, scales - 1)
    if rule == "even":
        return [round(number * (convolutions - 1) / last) for number in range(scales)]
    edge = 1 / 3 / convolutions if convolutions == 4 else 1 / 2 / convolutions
    points = np.linspace(edge, 1 - edge, convolutions)
    return [int(np.argmin(np.abs(points - number / last))) for number in range(scales)]


class ScalesQuantizer(Quantizer):
    """Multi-scale residual quantizer. Q = number of scales."""

    span = 0

    def __init__(self, config: ScalesConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        own = 1 if config.shared else len(config.sizes)
        levels = [make(config.quantizer, dim, depth, f"{where}.quantizer") for _ in range(own)]
        if len(levels[0].cardinalities) != 1 or levels[0].span != 1:
            raise ConfigError(f"{where}.quantizer: a position of a scale has one code; use a leaf such as vq")
        rows, columns = config.sizes[-1]
        for number, (r, c) in enumerate(config.sizes):
            if r > rows or c > columns:
                raise ConfigError(f"{where}.sizes.{number}: {r} x {c} is larger than the map, {rows} x {columns}")
        super().__init__(dim, levels * (len(config.sizes) // own))
        self.config = config
        self.levels = nn.ModuleList(levels)
        self.places = rows * columns
        self.phi_numbers = phi_numbers(len(config.sizes), config.convolutions, config.phi)
        self.phi = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(config.convolutions))
        for layer in self.phi:
            nn.init.dirac_(layer.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        for number, size in enumerate(config.sizes):
            down, up = resize_matrices(size, (rows, columns))
            self.register_buffer(f"down_{number}", down, persistent=False)
            self.register_buffer(f"up_{number}", up, persistent=False)

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. The mask must be uniform within a sample. Loss "commitment" is that of the sums."""
        kept = self._whole(x, mask)
        total, codes, losses = torch.zeros_like(x), [], {}
        for number in range(len(self.cardinalities)):
            small = self._shrink(number, x - total.detach())
            wanted = None if kept is None else kept[:, None].expand(small.shape[:2])
            part = self._level(number).quantize(small, wanted)
            total = total + self._enlarge(number, part.vectors)
            codes.append(F.pad(part.codes, (0, 0, 0, self.places - part.codes.shape[1]), value=-1))
            # A mean over the positions of the scale, repeated for every position of the sample.
            averages = {name: loss.mean(dim=1, keepdim=True).expand(x.shape[:2]) for name, loss in part.losses.items()}
            add_losses(losses, averages)
        if self.phi:
            own = (x.detach() - total).square().mean(dim=-1)
            losses["codebook"] = losses["codebook"] + own if "codebook" in losses else own
        if kept is not None:
            losses = {name: torch.where(kept[:, None], loss, 0.0) for name, loss in losses.items()}
            total = torch.where(kept[:, None, None], total, 0.0)
        return QuantizerOutput(total, torch.cat(codes, dim=-1), losses)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        self._whole(x, mask)
        total, codes = torch.zeros_like(x), []
        for number in range(len(self.cardinalities)):
            found = self._level(number).search(self._shrink(number, x - total))
            total = total + self._enlarge(number, self._level(number).lookup(found))
            codes.append(F.pad(found, (0, 0, 0, self.places - found.shape[1]), value=-1))
        return torch.cat(codes, dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, Q] -> [B, M, D]; a scale whose codes are -1 contributes 0."""
        total = torch.zeros(*codes.shape[:2], self.dim, device=codes.device)
        for number, (rows, columns) in enumerate(self.config.sizes):
            own = codes[:, : rows * columns, number, None]
            more = self._enlarge(number, self._level(number).lookup(own))
            total = total + torch.where((own[:, :1] >= 0).expand_as(more), more, 0.0)
        return total

    def vectors(self) -> Tensor:
        """[Q, V, D], before upsampling."""
        return join_tables([self._level(number).vectors() for number in range(len(self.cardinalities))])

    def to_frames(self, codes: Tensor) -> Tensor:
        """Codes [B, M, Q] -> frames [B, T, 1]: the cells of the first scale, then of the second, and so on."""
        counts = [rows * columns for rows, columns in self.config.sizes]
        return torch.cat([codes[:, :count, number] for number, count in enumerate(counts)], dim=1)[..., None]

    def from_frames(self, frames: Tensor) -> Tensor:
        """Inverse of `to_frames`."""
        parts = frames[..., 0].split([rows * columns for rows, columns in self.config.sizes], dim=1)
        return torch.stack([F.pad(part, (0, self.places - part.shape[1]), value=-1) for part in parts], dim=-1)

    def phi_of(self, number: int) -> nn.Conv2d | None:
        """The phi convolution of a scale."""
        return self.phi[self.phi_numbers[number]] if self.phi else None  # pyright: ignore[reportReturnType]

    def _level(self, number: int) -> Quantizer:
        return self.levels[0 if self.config.shared else number]  # pyright: ignore[reportReturnType]

    def _whole(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Check the map size; returns which samples are valid [B]."""
        if x.shape[1] != self.places:
            rows, columns = self.config.sizes[-1]
            raise ValueError(f"scales need {rows} x {columns} positions per sample, found {x.shape[1]}")
        if mask is not None and bool((mask != mask[:, :1]).any()):
            raise ValueError("scales quantize a whole sample; mask all of its positions or none")
        return None if mask is None else mask[:, 0]

    def _shrink(self, number: int, x: Tensor) -> Tensor:
        """[B, M, D] -> [B, m, D]."""
        down: Tensor = getattr(self, f"down_{number}").to(exact_dtype(x))
        return torch.stack([down @ sample for sample in x.to(down.dtype)]).float() if len(x) else x[:, : len(down)]

    def _enlarge(self, number: int, small: Tensor) -> Tensor:
        """[B, m, D] -> [B, M, D], including phi."""
        up: Tensor = getattr(self, f"up_{number}").to(exact_dtype(small))
        large = up @ small.to(up.dtype)
        layer = self.phi_of(number)
        if layer is not None:
            weight, bias = layer.weight.to(up.dtype), layer.bias.to(up.dtype)  # pyright: ignore
            large = blend(large, weight, bias, self.config.sizes[-1])
        return large.float()


def resize_matrices(small: tuple[int, int], large: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Matrices that average a map [M, D] to a smaller one [m, D], and enlarge that by bicubic interpolation, float64.

    A product with them does not depend on the batch, as the functions that resize maps may.
    """
    cells, places = small[0] * small[1], large[0] * large[1]
    if torch.get_default_device().type == "meta":  # those functions take seconds there
        return torch.empty(cells, places, dtype=torch.float64), torch.empty(places, cells, dtype=torch.float64)
    whole = torch.eye(places, dtype=torch.float64).view(places, 1, *large)
    part = torch.eye(cells, dtype=torch.float64).view(cells, 1, *small)
    down = F.adaptive_avg_pool2d(whole, small).flatten(1).T
    up = F.interpolate(part, large, mode="bicubic").flatten(1).T
    return down.contiguous(), up.contiguous()


def blend(large: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> Tensor:
    """Apply phi(u) = u / 2 + conv(u) / 2 to maps [B, M, D] of `size` rows and columns."""
    grid = large.transpose(1, 2).unflatten(2, size)
    more = F.conv2d(grid, weight, bias, padding=1)
    return 0.5 * large + 0.5 * more.flatten(2).transpose(1, 2)
