"""Heads: from the backbone's hidden state of a step to logits of the K ids of that step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokenize.config import Config


class ParallelHeadConfig(Config):
    """One linear layer for each codebook; the codes of a step are predicted independently of each other."""

    kind: Literal["parallel"] = "parallel"


HeadConfig = ParallelHeadConfig


class ParallelHead(nn.Module):
    """hidden [*, D] -> logits [*, K, V'], V' the largest number of outputs; ids a codebook does not have get -inf."""

    absent: Tensor | None

    def __init__(self, config: ParallelHeadConfig, width: int, output_sizes: Sequence[int]):
        super().__init__()
        K, V = len(output_sizes), max(output_sizes)
        self.shape = (K, V)
        self.weight = nn.Parameter(torch.empty(K * V, width))
        # The bias of the matrix product is 0 or -inf: forbidding an id costs nothing.
        absent = torch.zeros(K, V, device="cpu")
        for k, size in enumerate(output_sizes):
            absent[k, size:] = float("-inf")
        self.register_buffer("absent", absent.flatten() if bool(absent.any()) else None, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.absent).unflatten(-1, self.shape)


HEADS: dict[str, type[nn.Module]] = {"parallel": ParallelHead}
