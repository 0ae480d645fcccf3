"""Embedding tables: learned vectors of ids, and of the special ids of a codebook pattern."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Table(nn.Module):
    """Learned embedding table. nn.Embedding would initialize it on creation, which takes seconds on the meta device."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class SpecialVectors(Table):
    """Learned embeddings of special ids: ids [B, K, S] -> [B, S, width], summed over the codebooks that hold one."""

    cardinalities: Tensor
    starts: Tensor

    def __init__(self, cardinalities: Sequence[int], num_specials: int, width: int):
        K = len(cardinalities)
        super().__init__(K * num_specials, width)
        starts = torch.arange(K, device="cpu")[:, None] * num_specials
        self.register_buffer("cardinalities", torch.tensor(cardinalities, device="cpu")[:, None], persistent=False)
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        beyond = (ids - self.cardinalities).transpose(1, 2)
        rows = beyond.clamp(min=0) + self.starts[:, 0]
        return super().forward(rows).masked_fill((beyond < 0).unsqueeze(-1), 0.0).sum(dim=2)
