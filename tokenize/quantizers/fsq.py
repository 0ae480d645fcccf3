"""Finite scalar quantization: each of a few dimensions is bounded and rounded to a few values; nothing is learned.

The default, `rounding: equal_parts`, is Tessera's variant; its codes differ from those of the published quantizer.
A dimension with L values splits tanh(z) into L equal parts, whose values are evenly spaced on [-1, 1], ends included:

    L = 4     tanh(z)   -1 ---- -.5 ---- 0 ---- .5 ---- 1          L = 3    -1 ------ -1/3 ------ 1/3 ------ 1
    value                   -1     -1/3    1/3      1                           -1          0           1

Even and odd L are both symmetric, and no value can fall outside. The published roundings shift even L by half a step:

    vq_pytorch   h = (L - 1) (1 + eps) / 2,   o = 1/2 where L is even else 0,   shift = atanh(o / h)
    paper        h = (L - 1) (1 - eps) / 2,   o the same,                       shift = tan(o / h)
    value        round(tanh(z + shift) h - o) / floor(L / 2),   eps = 0.001

    L = 4        values -1  -1/2  0  1/2;   vq_pytorch's boundary between the upper two values lies at z = 0.46

They are bit-identical to the public code; weights of public codecs need them. With L = 2 their boundary lies far from
0 (vq_pytorch: z = -3.8, paper: z = -1.6), so an untrained encoder outputs only one of the two values.

Sources: arXiv:2309.15505 and its appendix (paper; also used by NeMo's NanoCodec), lucidrains/vector-quantize-pytorch
(MIT; also used by XCodec2, Cosmos and transformers).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from ...configs.schema import FingerprintedConfig
from .base import MAX_PACKED, Quantizer, QuantizerOutput
from .codebooks.nearest import exact_dtype
from .projection import project, straight_through

MAX_TABLE = 1 << 22
MAX_FLOAT32 = 1 << 20
"""Number of values per dimension that float32 distinguishes with bits to spare."""


EPSILON = 1e-3
"""eps of the published roundings."""
MAX_SHIFTED = 1000
"""Number of values per dimension above which EPSILON exceeds half a step."""


class FSQConfig(FingerprintedConfig):
    """One implicit codebook, the product of a few scalar grids."""

    added = frozenset({"rounding"})

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field(min_length=1)
    """Values per dimension; V is their product. Latents of another dimension are projected in and out."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the loss that keeps latents near their codes, and thus out of tanh's saturation. The published
    quantizer has no such loss: 0."""
    rounding: Literal["equal_parts", "paper", "vq_pytorch"] = "equal_parts"
    """equal_parts: Tessera's variant. paper: as in the paper's appendix and NeMo. vq_pytorch: as in
    vector-quantize-pytorch, XCodec2 and Cosmos. The docstring of tokenize/quantizers/fsq.py has the formulas."""

    @model_validator(mode="after")
    def _fits(self) -> FSQConfig:
        if math.prod(self.levels) > MAX_PACKED:
            raise ValueError(
                f"levels {list(self.levels)} make {math.prod(self.levels)} codes, more than 2^62; use fewer dimensions"
            )
        if self.rounding != "equal_parts" and max(self.levels) > MAX_SHIFTED:
            raise ValueError(
                f"levels {list(self.levels)}: rounding '{self.rounding}' supports at most "
                f"{MAX_SHIFTED} values per dimension; use rounding equal_parts, or more dimensions"
            )
        return self


class FiniteScalarQuantizer(Quantizer):
    """Finite scalar quantizer. Q = 1. `depth`: its level in a residual; each level is L - 1 times finer."""

    sizes: Tensor
    radix: Tensor

    def __init__(self, config: FSQConfig, dim: int, depth: int = 0, where: str = "quantizer"):
        super().__init__(dim, [math.prod(config.levels)])
        self.config = config
        width = len(config.levels)
        self.project_in = nn.Linear(dim, width) if dim != width else None
        self.project_out = nn.Linear(width, dim) if dim != width else None
        radix = [math.prod(config.levels[:axis]) for axis in range(width)]
        self.register_buffer("sizes", torch.tensor(config.levels), persistent=False)
        self.register_buffer("radix", torch.tensor(radix), persistent=False)
        # A tuple, not a buffer: `.bfloat16()` must not round it.
        self.depth = depth
        self.scale = tuple(float(size - 1) ** -depth for size in config.levels)
        self.bounds = None if config.rounding == "equal_parts" else _bounds(config.levels, config.rounding)

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Losses: "commitment" if its weight is not 0, "codebook" if there are projections."""
        flat = x.detach().flatten(0, 1)
        digits = self._digits(flat, exact=not self.training)
        codes, vectors = self._join(digits), self._values(digits)
        if self.project_in is not None and self.project_out is not None:
            scale = self._scale(flat)
            z = project(self.project_in, flat, torch.float32) / scale
            bounded = (torch.tanh(z) if self.bounds is None else self._shifted(z) / (self.sizes // 2)) * scale
            vectors = vectors + straight_through(bounded, self.project_out)
        if mask is not None:
            kept = mask.reshape(-1, 1)
            codes, vectors = codes.masked_fill(~kept, -1), torch.where(kept, vectors, 0.0)
        vectors = vectors.view_as(x)
        losses = {}
        if self.config.commitment:
            losses["commitment"] = self.config.commitment * (x - vectors.detach()).square().mean(dim=-1)
        if self.project_in is not None:
            losses["codebook"] = (x.detach() - vectors).square().mean(dim=-1)
        return QuantizerOutput(vectors, codes.view(*x.shape[:2], 1), losses)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, 1]."""
        return self._join(self._digits(x.flatten(0, 1))).view(*x.shape[:2], 1)

    @torch.no_grad()
    def _digits(self, x: Tensor, exact: bool = True) -> Tensor:
        """[N, D] -> the integer digit of each dimension [N, d], as floats; `exact`: batch-invariant (float64)."""
        dtype = exact_dtype(x) if exact or max(self.config.levels) > MAX_FLOAT32 else torch.float32
        z = x.contiguous().to(dtype) if self.project_in is None else project(self.project_in, x, dtype)
        z = z if self.bounds is None else z.float()  # matches the public code, operation by operation
        z = z if self.depth == 0 else z / self._scale(z)
        if self.bounds is None:
            digits = torch.tanh(z).add_(1).mul_(self.sizes.to(dtype) / 2).floor_()  # of parts in [0, size]
        else:
            digits = self._shifted(z).round_() + self.sizes // 2
        return digits.nan_to_num_().minimum(self.sizes - 1).clamp_min_(0)

    def _shifted(self, z: Tensor) -> Tensor:
        """Latents [N, d] bounded by a published rounding, float32."""
        assert self.bounds is not None
        half, offset, shift = (numbers.to(z.device) for numbers in self.bounds)
        return (z + shift).tanh() * half - offset

    def _join(self, digits: Tensor) -> Tensor:
        """[N, d] -> [N, 1]. Summed as int64: float sums lose codes above 2^24."""
        return (digits.long() * self.radix).sum(dim=-1, keepdim=True)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, 1] -> [B, M, D]."""
        digits = codes.flatten(0, 1).clamp_min(0) // self.radix % self.sizes
        values = self._values(digits).view(*codes.shape[:2], self.dim)
        return torch.where(codes >= 0, values, 0.0)

    def _values(self, digits: Tensor) -> Tensor:
        """[N, d] -> [N, D]."""
        if self.bounds is None:
            values = (2 * digits + (1 - self.sizes)).float() / (self.sizes - 1)
        else:
            values = (digits - self.sizes // 2).float() / (self.sizes // 2)
        values = values if self.depth == 0 else values * self._scale(values)
        if self.project_out is not None:
            # Column by column, in float32: the rounding of a matrix product can depend on the number of rows.
            weight, bias = self.project_out.weight.float(), self.project_out.bias.float()
            out = bias.expand(len(values), -1)
            for axis in range(values.shape[1]):
                out = out + values[:, axis, None] * weight[:, axis]
            values = out
        return values

    def vectors(self) -> Tensor:
        """[1, V, D]; ValueError above 4 million codes: the table would be too large."""
        size = self.cardinalities[0]
        if size > MAX_TABLE:
            raise ValueError(f"an fsq of {size} codes has no table of vectors (limit {MAX_TABLE}); use decode(codes)")
        return self.decode(torch.arange(size, device=self.sizes.device)[:, None])[None]

    def _scale(self, like: Tensor) -> Tensor:
        return torch.tensor(self.scale, dtype=like.dtype, device=like.device)


def _bounds(levels: tuple[int, ...], rounding: str) -> tuple[Tensor, Tensor, Tensor]:
    """Half widths, offsets and shifts [d] of a published rounding, in float32 as in the public code."""
    sizes = torch.tensor(levels, dtype=torch.int32)
    half = (sizes - 1) * (1 + EPSILON if rounding == "vq_pytorch" else 1 - EPSILON) / 2
    offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
    shift = (offset / half).atanh() if rounding == "vq_pytorch" else torch.tan(offset / half)
    return half, offset, shift
