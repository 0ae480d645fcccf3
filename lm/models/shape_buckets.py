"""Length buckets: shapes shared by many generations, so that a step is compiled or captured for few of them.

A length is rounded up to the next multiple of 64; above 512, to a multiple of an eighth of the power of two below it:
64, 128, ... 512, 576, ... 1024, 1152, ... 2048, 2304, ... so padding is at most an eighth, or 63 positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning.registry import FusedConditions

UNIT = 64
"""The smallest bucket."""


def bucket(length: int) -> int:
    """Round a length up to its bucket, at least UNIT."""
    unit = max(UNIT, (1 << max(length - 1, 1).bit_length() - 1) // 8)
    return max(1, -(-length // unit)) * unit


def pad_to_buckets(joined: FusedConditions, fixed_prefix: bool) -> FusedConditions:
    """Pad the prefix [B, P, D], the memory [B, L, D] and the units of conditions to bucketed lengths, and mask the
    padding.

    Args:
        fixed_prefix: the prefix has the same length for all conditions, so it is not padded.
    """
    prefix, prefix_mask = joined.prefix, joined.prefix_mask
    if prefix is not None and not fixed_prefix:
        missing = bucket(prefix.shape[1]) - prefix.shape[1]  # on the left: a prefix ends where the steps begin
        prefix_mask = F.pad(_mask(prefix, prefix_mask), (missing, 0))
        prefix = F.pad(prefix, (0, 0, missing, 0))
    memory, memory_mask = joined.memory, joined.memory_mask
    if memory is not None:
        missing = bucket(memory.shape[1]) - memory.shape[1]
        memory_mask = F.pad(_mask(memory, memory_mask), (0, missing))
        memory = F.pad(memory, (0, 0, 0, missing))
    units = joined.units
    if units is not None:
        units = units.padded(bucket(units.vectors.shape[1] - 1))
    beside = joined.beside
    if beside is not None:  # its last vector is that of all later steps
        missing = bucket(beside.shape[1]) - beside.shape[1]
        beside = torch.cat([beside, beside[:, -1:].expand(-1, missing, -1)], dim=1)
    return FusedConditions(prefix, prefix_mask, memory, memory_mask, joined.summed, units, joined.adaptive, beside)


def _mask(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
