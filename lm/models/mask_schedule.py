"""Choose the codes that are masked when training a masked model.

Of the L maskable units (cells, or whole frames), n are masked uniformly at random, and each masked unit is weighted by
L / n, so every row counts as if all its codes were predicted. With n uniform over 1 .. L, the loss is the mean, over
all orders, of the negative log-likelihood of filling in the codes one by one (arXiv:2110.02037, section 2).
Sources: MaskGIT (arXiv:2202.04200) for the cosine, MaskBit (arXiv:2409.16211) for masking parts of a position.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ...configs.schema import Config
from ..ops.row_rng import rand


class MaskingConfig(Config):
    """Masking in training."""

    unit: Literal["cell", "frame"] = "cell"
    """cell: one codebook's code in one frame, or a sub-token of it if the head predicts sub-tokens. frame: all codes of
    a frame together."""
    share: Literal["uniform", "cosine", "arccos"] = "cosine"
    """Distribution of the masked share, with u uniform in [0, 1]. uniform: u. cosine: cos(pi u / 2), mostly large
    shares. arccos: acos(u) 2 / pi."""
    everything: float = Field(default=0.0, ge=0, le=1)
    """Share of rows that are fully masked, as in the first pass of decoding; 1: for single-pass decoding only."""


@dataclass(frozen=True)
class SampledMask:
    """The masked positions of a batch."""

    mask: Tensor
    """[B, K, T] bool, True where a code is masked; False beyond a row's length."""
    weight: Tensor
    """[B] float32, L / n of each row."""


def sample_mask(config: MaskingConfig, lengths: Tensor, numbers: Tensor, cells: Tensor) -> SampledMask:
    """Choose the masked cells.

    Args:
        lengths: [B] long, frames of each row.
        numbers: [B, 2] uniform in [0, 1): whether everything is masked, and how much.
        cells: [B, K, T] uniform in [0, 1): the lowest are masked first.
    """
    _, K, T = cells.shape
    ranked = cells if config.unit == "cell" else cells[:, :1]
    beyond = torch.arange(T, device=cells.device) >= lengths[:, None, None]
    rank = ranked.masked_fill(beyond, 2.0).flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    units = lengths * ranked.shape[1]
    count = (numbers[:, 1].double() * units).floor() + 1
    if config.share == "cosine":
        count = (torch.cos(math.pi / 2 * numbers[:, 1].double()) * units).ceil().clamp(min=1)
    if config.share == "arccos":
        count = (torch.acos(numbers[:, 1].double()) * 2 / math.pi * units).ceil().clamp(min=1)
    count = torch.where(numbers[:, 0] < config.everything, units, count.long()).minimum(units)
    mask = (rank < count[:, None]).unflatten(1, ranked.shape[1:])
    return SampledMask(mask.expand(-1, K, -1) if config.unit == "frame" else mask, (units / count).float())


def random_numbers(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Random numbers for `sample_mask` from torch's global generator: [B, 2] and [B, K, T]."""
    B = codes.shape[0]
    return rand((B, 2), codes.device), rand(codes.shape, codes.device)


def fixed_numbers(codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Random numbers for `sample_mask` seeded by each row's codes, so that a loss is reproducible."""
    numbers, cells = torch.zeros(codes.shape[0], 2), torch.zeros(codes.shape)
    for row, (item, length) in enumerate(zip(codes.cpu(), lengths.tolist(), strict=True)):
        seed = zlib.crc32(item[:, :length].contiguous().numpy().tobytes())
        generator = torch.Generator().manual_seed(seed)
        numbers[row] = torch.rand(2, generator=generator)
        cells[row, :, :length] = torch.rand(codes.shape[1], length, generator=generator)
    return numbers.to(codes.device), cells.to(codes.device)
