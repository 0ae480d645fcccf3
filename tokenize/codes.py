"""Batches of codes [B, K, T]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def pad_and_cat(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate batches of codes [b, K, t] of different lengths t to [B, K, T], T the longest, padded with 0."""
    longest = max(part.shape[2] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[2])) for part in parts])
