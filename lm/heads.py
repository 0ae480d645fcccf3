"""Heads: from the backbone's hidden state of a step to logits of the K ids of that step.

A head predicts the codebooks of a step in `stages`, one after another: what an earlier stage chose may be read by a
later one. The parallel head has one stage of all codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokenize.config import Config


class Head(Protocol):
    """What the model asks of a head."""

    stages: tuple[tuple[int, ...], ...]
    """The codebooks that are predicted together, in the order of prediction; each codebook once."""

    def __call__(self, hidden: Tensor, ids: Tensor | None) -> Tensor:
        """Logits of whole sequences: hidden [B, S, D] and the ids of the same steps [B, K, S] -> [B, S, K, V'].

        Logits of a codebook depend on ids of codebooks in earlier stages of the same step only; a head of one stage
        takes None.
        """
        ...

    def begin(self, hidden: Tensor) -> Any:
        """What `predict` needs for one step, from hidden [B, D]."""
        ...

    def predict(self, begun: Any, stage: int, ids: Tensor) -> Tensor:
        """Logits [B, n, V'] of the n codebooks of a stage; ids [B, K] hold what earlier stages chose."""
        ...


class ParallelHeadConfig(Config):
    """One linear layer for each codebook; the codes of a step are predicted independently of each other."""

    kind: Literal["parallel"] = "parallel"


HeadConfig = ParallelHeadConfig


class ParallelHead(nn.Module):
    """hidden [*, D] -> logits [*, K, V'], V' the largest number of outputs; ids a codebook does not have get -inf."""

    weight: Tensor | None
    absent: Tensor | None

    def __init__(self, config: ParallelHeadConfig, width: int, output_sizes: Sequence[int]):
        super().__init__()
        K, V = len(output_sizes), max(output_sizes)
        self.stages = (tuple(range(K)),)
        self.shape = (K, V)
        self.weight = nn.Parameter(torch.empty(K * V, width))
        self.packed: nn.Module | None = None
        """The layer in another form, in place of the weight; see quantise.py."""
        # The bias of the matrix product is 0 or -inf: forbidding an id costs nothing.
        absent = torch.zeros(K, V, device="cpu")
        for k, size in enumerate(output_sizes):
            absent[k, size:] = float("-inf")
        self.register_buffer("absent", absent.flatten() if bool(absent.any()) else None, persistent=False)

    def forward(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        if self.weight is None:
            assert self.packed is not None
            return self.packed(hidden).unflatten(-1, self.shape)
        return F.linear(hidden, self.weight, self.absent).unflatten(-1, self.shape)

    def begin(self, hidden: Tensor) -> Tensor:
        return hidden

    def predict(self, begun: Tensor, stage: int, ids: Tensor) -> Tensor:
        return self(begun)


HEADS: dict[str, Callable[..., Any]] = {"parallel": ParallelHead}
"""Made as HEADS[kind](config, width, output_sizes); a module that does what `Head` says."""
