"""Codes at a lower rate: adjacent positions are averaged, quantized once, and share the code.

    x0 x1 x2 | x3 x4 x5 | x6        every: 3        mean of each, quantized        c0 c0 c0 | c1 c1 c1 | c2

Codes keep one row per position, so consumers of codes need no changes; every third row holds all the information.
A `chain` of strides 4, 2, 1 is SNAC (arXiv:2410.14411).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from ....configs.schema import Config
from ..base import MakeQuantizer, Quantizer, QuantizerOutput
from .wrapper import Wrapper

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class StrideConfig(Config):
    """One code for several consecutive positions (in raster order for images)."""

    kind: Literal["stride"] = "stride"
    every: PositiveInt
    """Positions in a row that share a code."""
    quantizer: QuantizerConfig
    """Quantizer of the averages."""


class StridedQuantizer(Wrapper):
    """Quantizes averages of consecutive positions."""

    def __init__(self, config: StrideConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        super().__init__(make(config.quantizer, dim, depth, f"{where}.quantizer"))
        self.config = config
        self._set_every(config.every, self.inner)

    def _set_every(self, every: int, inner: Quantizer) -> None:
        self.every = every
        self.span = every * inner.span

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize; every position gets the vector, codes and losses of its cell."""
        places = x.shape[1]
        part = self.inner.quantize(*self._pool(x, mask))
        codes, vectors = self._spread(part.codes, places), self._spread(part.vectors, places)
        losses = {name: self._spread(loss, places) for name, loss in part.losses.items()}
        if mask is not None:
            codes = codes.masked_fill(~mask[..., None], -1)
            vectors = torch.where(mask[..., None], vectors, 0.0)
            losses = {name: torch.where(mask, loss, 0.0) for name, loss in losses.items()}
        return QuantizerOutput(vectors, codes, losses)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        return self._spread(self.inner.search(*self._pool(x, mask)), x.shape[1])

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See Quantizer.rate; each cell counts once."""
        short = -codes.shape[1] % self.every
        cells = F.pad(codes, (0, 0, 0, short), value=-1).unflatten(1, (-1, self.every))
        return self.inner.rate(cells.amax(dim=2))

    def fit_parts(self, x: Tensor) -> bool:
        """Fit the inner quantizer on averages."""
        return self.inner.fit_parts(self._pool(x, None)[0])

    def _pool(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Means over the valid positions of each cell: [B, M, D] -> [B, cells, D], and which cells have any."""
        count, places, dim = x.shape
        valid = torch.ones(count, places, dtype=torch.bool, device=x.device) if mask is None else mask
        cells, short = -(-places // self.every), -places % self.every
        groups = F.pad(x, (0, 0, 0, short)).view(count, cells, self.every, dim)
        number = F.pad(valid, (0, short)).view(count, cells, self.every).sum(dim=-1)
        # Add sequentially: the summation order of a reduction can depend on the shape.
        total = groups[:, :, 0]
        for place in range(1, self.every):
            total = total + groups[:, :, place]
        return total / number.clamp_min(1)[..., None], number > 0

    def _spread(self, cells: Tensor, places: int) -> Tensor:
        return cells.repeat_interleave(self.every, dim=1)[:, :places]
