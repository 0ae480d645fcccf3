"""LM loss of a share of a batch, scaled so that the shares of all micro-batches and processes sum to the batch loss.

Examples differ in length, so the mean over micro-batch means is not the mean over the batch. Each micro-batch therefore
divides its sums by the number of predictions in the whole batch, which every process knows from the lengths (of
sequences with text, from the shapes):

    loss = mean_k( sum over all predictions of codebook k / their number )      weighted by lm.loss_weights
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...lm.conditioning.registry import ConditionBatch
from ...lm.models.base import LanguageModel
from ...lm.models.packed_sequences import packed_loss
from ...lm.models.transformer_lm import TransformerLM
from ...lm.patterns.text_stream import ExampleShape
from ..engines.base import Trainable


class Objective(Trainable):
    """Wraps an LM so that its forward pass returns the loss (DistributedDataParallel and DeepSpeed only wrap
    `forward`).

    Args:
        lm: the model in training.
        dtype: "bfloat16" runs the forward pass under autocast, "float32" without.
        packed: pack the examples of a batch into one sequence instead of padding them (lm/models/packed_sequences.py).
    """

    def __init__(self, lm: LanguageModel, dtype: str = "float32", label_smoothing: float = 0.0, packed: bool = False):
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
            codes: [B, K, T] long. lengths: [B] frames, None if all have T. conditions: of the same examples.
            totals: [K] number of predictions in the whole batch; None: in these examples.
            side: side of the square patches of frames that are predicted at once.
        Returns:
            this share of the loss (scalar, including multi-token prediction), sums of the losses [K] (detached,
            float64), number of predictions [K].
        """
        with torch.autocast(codes.device.type, torch.bfloat16, enabled=self.use_autocast):
            if self.packed:
                report = packed_loss(self.lm, codes, lengths, conditions, self.label_smoothing)
            else:
                report = self.lm.loss(codes, lengths, conditions, self.label_smoothing, side)
        counts = report.count.float()
        means = report.per_codebook.float() if report.ahead is None else report.per_codebook + report.ahead
        shares = means * (counts / (counts if totals is None else totals.to(counts)).clamp(min=1))
        sums = report.per_codebook.detach().double() * report.count
        return (shares * report.weights).sum(), sums, report.count


class TermCounter:
    """Number of predictions for examples of given shapes (`CodesDataset.shapes`); queries the model once per
    length."""

    def __init__(self, lm: TransformerLM):
        self._count_terms = lm.count_terms
        self._known: dict[int, Tensor] = {}

    def __call__(self, shapes: Iterable[int | ExampleShape]) -> Tensor:
        """Predictions per codebook (or scale) [K], float64, over all examples."""
        return torch.stack([self._of(shape) for shape in shapes]).sum(0)

    def _of(self, shape: int | ExampleShape) -> Tensor:
        if isinstance(shape, ExampleShape):  # too many to remember, and quickly counted
            return self._count_terms(shape).double()
        if int(shape) not in self._known:
            self._known[int(shape)] = self._count_terms(int(shape)).double()
        return self._known[int(shape)]
