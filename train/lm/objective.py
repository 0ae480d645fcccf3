"""The loss of a share of a batch, scaled so that the shares of all micro-batches and processes add up to the loss of
the whole.

Items differ in length, so a mean of the micro-batches' means is not the mean over the batch. Each micro-batch therefore
divides its sums by the terms of the whole batch, which every process knows from the lengths alone:

    loss = mean_k( sum over all terms of codebook k / number of those terms )      weighted by lm.loss_weights
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...lm.conditioning.registry import ConditionBatch
from ...lm.models.causal import TokenLM
from ...lm.models.packed_sequences import packed_loss
from ...lm.models.registry import AnyLM
from ..engines.base import Trainable


class Objective(Trainable):
    """Wraps an LM so that calling it gives the loss (DistributedDataParallel and DeepSpeed only wrap `forward`).

    Args:
        lm: the model in training.
        dtype: "bfloat16" runs the forward pass under autocast, "float32" as it is.
        packed: lay the rows of a batch end to end instead of padding them (lm/models/packed_sequences.py).
    """

    def __init__(self, lm: AnyLM, dtype: str = "float32", label_smoothing: float = 0.0, packed: bool = False):
        super().__init__()
        self.lm = lm
        self.use_autocast = dtype == "bfloat16"
        self.label_smoothing = label_smoothing
        self.packed = packed

    @property
    def body(self) -> nn.Module:
        """The LM."""
        return self.lm

    def forward(
        self,
        codes: Tensor,
        lengths: Tensor | None,
        conditions: ConditionBatch,
        totals: Tensor | None = None,
        side: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of a micro-batch.

        Args:
            codes: [B, K, T] long. lengths: [B] frames, None where all have T. conditions: of the same rows.
            totals: [K] loss terms of the whole batch; None: of these rows.
            side: of the squares of frames that are predicted at once.
        Returns:
            this share of the loss (scalar, with that of guesses ahead), sums of the loss terms [K] (detached, float64),
            their numbers [K].
        """
        with torch.autocast(codes.device.type, torch.bfloat16, enabled=self.use_autocast):
            if self.packed:
                assert isinstance(self.lm, TokenLM)
                report = packed_loss(self.lm, codes, lengths, conditions, self.label_smoothing)
            else:
                report = self.lm.loss(codes, lengths, conditions, self.label_smoothing, side)
        counts = report.count.float()
        means = report.per_codebook.float() if report.guesses is None else report.per_codebook + report.guesses
        shares = means * (counts / (counts if totals is None else totals.to(counts)).clamp(min=1))
        sums = report.per_codebook.detach().double() * report.count
        return (shares * report.weights).sum(), sums, report.count


class TermCounter:
    """Loss terms that items of given lengths have, asked from the model once for each length."""

    def __init__(self, lm: TokenLM):
        self._count_terms = lm.count_terms
        self._known: dict[int, Tensor] = {}

    def __call__(self, lengths: Iterable[int]) -> Tensor:
        """Terms of each codebook (each scale) [K], float64, of all items together; lengths in frames."""
        return torch.stack([self._of(int(length)) for length in lengths]).sum(0)

    def _of(self, length: int) -> Tensor:
        if length not in self._known:
            self._known[length] = self._count_terms(length).double()
        return self._known[length]
