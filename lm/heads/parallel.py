"""The parallel head: one linear layer per sub-token of a step, all sampled at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...configs.schema import Config
from ..ops.linear import linear
from ..ops.loss import cross_entropy
from ..patterns.sub_tokens import SubTokens
from .base import HeadContext


class ParallelHeadConfig(Config):
    """One linear layer per codebook; the codes of a step are predicted independently."""

    kind: Literal["parallel"] = "parallel"
    bias: bool = False
    """The layers have a bias."""


class ParallelHead(nn.Module):
    """hidden [*, D] -> logits [*, J, V'], V' the largest vocabulary; values outside a sub-token's vocabulary get -inf.

    The methods implement `base.Head`.
    """

    weight: Tensor | None
    absent: Tensor | None
    period = 1

    def __init__(
        self,
        config: Config,
        context: HeadContext,
        digits: Sequence[Sequence[int]] | None = None,
    ):
        """`digits`: as for `SubTokens`; None: the sub-tokens are the ids of the codebooks."""
        super().__init__()
        self.sub_tokens = SubTokens(context.arrangement, digits)
        sizes = self.sub_tokens.output_sizes
        J, V = len(sizes), max(sizes)
        self.stages = (tuple(range(J)),)
        self.shape = (J, V)
        self.weight = nn.Parameter(torch.empty(J * V, context.width))
        self.bias = nn.Parameter(torch.zeros(J * V)) if getattr(config, "bias", False) else None
        self.packed: nn.Module | None = None
        """Packed form of the layer, used instead of the weight; see lm/quantization/packed_linear.py."""
        self.fused: Any = None
        """Fast path of single steps: a `FastHead` (lm/quantization/cpu_fast_decode.py)."""
        # Added to the matrix product with the bias, 0 or -inf: excluding a value is free.
        absent = torch.zeros(J, V, device="cpu")
        for j, size in enumerate(sizes):
            absent[j, size:] = float("-inf")
        self.register_buffer("absent", absent.flatten() if bool(absent.any()) else None, persistent=False)

    @property
    def offset(self) -> Tensor | None:
        """[J V']: the bias, and -inf for values outside a sub-token's vocabulary; None: neither."""
        if self.bias is None or self.absent is None:
            return self.absent if self.bias is None else self.bias
        return self.bias + self.absent

    def initialize_(self) -> None:
        pass

    def forward(self, hidden: Tensor, ids: Tensor | None = None, first_step: int = 0) -> Tensor:
        if self.weight is None:
            assert self.packed is not None
            return self.packed(hidden).unflatten(-1, self.shape)
        offset = None if self.offset is None else self.offset.to(self.weight.dtype)
        return linear(hidden, self.weight, offset).unflatten(-1, self.shape)

    def losses(self, hidden: Tensor, ids: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
        targets = self.sub_tokens.targets(ids, mask).transpose(1, 2)
        return self.sub_tokens.sum(cross_entropy(self(hidden), targets, label_smoothing).transpose(1, 2))

    def stages_at(self, step: int) -> tuple[tuple[int, ...], ...]:
        return self.stages

    def start(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        if self.fused is not None:
            self.fused.refresh(self)

    def begin(self, memory: None, hidden: Tensor, step: int) -> Tensor:
        return hidden

    def predict(self, begun: Tensor, stage: int, sub_tokens: Tensor) -> Tensor:
        logits = None if self.fused is None else self.fused(begun)
        return self(begun) if logits is None else logits.unflatten(-1, self.shape)

    def train(self, mode: bool = True) -> ParallelHead:
        """Like `nn.Module.train`; switching to training mode drops derived copies of the weights."""
        if mode:
            self.fused = None
        return super().train(mode)
