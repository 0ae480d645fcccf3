"""Sampling filters as tensors, one value per codebook."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Filters:
    """The filter settings of K codebooks as tensors on a device (see `filters.make_filters`)."""

    temperature: Tensor
    """[K], float64; 1 where greedy."""
    greedy: Tensor
    """[K], bool."""
    top_k: Tensor
    """[K], long; very large if off."""
    top_p: Tensor
    """[K], float64."""
    min_p: Tensor
    """[K], float64."""
    sorts: bool
    """Whether any codebook uses top-p, which requires sorted probabilities."""
    largest_k: int
    """The largest top-k; 0 if it is off for all codebooks."""

    def of(self, codebooks: list[int]) -> Filters:
        """The filters of some codebooks."""
        if codebooks == list(range(len(self.temperature))):
            return self
        chosen = {
            field.name: getattr(self, field.name)[codebooks]
            for field in fields(self)
            if field.name not in ("sorts", "largest_k")
        }
        return Filters(**chosen, sorts=self.sorts, largest_k=self.largest_k)

    def unfiltered(self) -> Filters:
        """Only the temperature (1 where greedy), with sampling for all codebooks."""
        return replace(
            self,
            greedy=torch.zeros_like(self.greedy),
            top_k=torch.full_like(self.top_k, 1 << 40),
            top_p=torch.ones_like(self.top_p),
            min_p=torch.zeros_like(self.min_p),
            sorts=False,
            largest_k=0,
        )
