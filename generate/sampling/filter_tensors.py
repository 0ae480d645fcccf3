"""Sampling filters as tensors, one value per codebook."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Filters:
    """A `SamplingConfig` checked against K codebooks and laid out as tensors on a device (see `make_filters`)."""

    temperature: Tensor
    """[K], float64; 1 where greedy."""
    greedy: Tensor
    """[K], bool."""
    top_k: Tensor
    """[K], long; very large where off."""
    top_p: Tensor
    """[K], float64."""
    min_p: Tensor
    """[K], float64."""
    sorts: bool
    """Whether top-p is on anywhere, so that probabilities must be sorted."""
    largest_k: int
    """The largest top-k; 0 where it is off everywhere."""

    def of(self, codebooks: list[int]) -> Filters:
        """Those of some codebooks."""
        if codebooks == list(range(len(self.temperature))):
            return self
        chosen = {
            field.name: getattr(self, field.name)[codebooks]
            for field in fields(self)
            if field.name not in ("sorts", "largest_k")
        }
        return Filters(**chosen, sorts=self.sorts, largest_k=self.largest_k)

    def unfiltered(self) -> Filters:
        """The temperature alone (1 where greedy), and a draw everywhere."""
        return replace(
            self,
            greedy=torch.zeros_like(self.greedy),
            top_k=torch.full_like(self.top_k, 1 << 40),
            top_p=torch.ones_like(self.top_p),
            min_p=torch.zeros_like(self.min_p),
            sorts=False,
            largest_k=0,
        )
