"""Codes of several items: padded to a batch, or concatenated for a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .spec import TokenSpec


def pad_and_cat(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate batches of codes [b, K, t] of different lengths t to [B, K, T], T the longest, padded with 0."""
    longest = max(part.shape[2] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[2])) for part in parts])


def concatenate_codes(codes: Sequence[Tensor], spec: TokenSpec) -> dict[str, Tensor]:
    """The tensors of a file with items of codes, [K, T] each.

    Returns:
        "codes" [K, T1 + T2 + ...] in the smallest unsigned type, and "offsets" [items + 1] int64: item i is
        codes[:, offsets[i] : offsets[i + 1]].
    """
    offsets = torch.tensor([0, *(item.shape[1] for item in codes)]).cumsum(0)
    return {"codes": torch.cat([item.cpu() for item in codes], dim=1).to(code_dtype(spec)), "offsets": offsets}


def code_dtype(spec: TokenSpec) -> torch.dtype:
    """The smallest unsigned type that holds the largest code."""
    largest = max(spec.cardinalities) - 1
    for dtype in (torch.uint8, torch.uint16, torch.uint32):
        if largest <= torch.iinfo(dtype).max:
            return dtype
    raise ValueError(f"codes up to {largest} do not fit into 32 bits")
