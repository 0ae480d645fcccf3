"""The condition `label`: one of a fixed list."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ..layers.embedding import Table
from ..ops.row_rng import rand
from .base import ConditionContext
from .batch import ConditionBatch


class LabelConfig(Config):
    """One of a fixed list of labels."""

    kind: Literal["label"] = "label"
    classes: PositiveInt | None = None
    """Number of labels; null: filled in from the data."""
    join: Literal["prefix", "cross", "sum", "adaptive"] = "prefix"
    """prefix: a token before the first step. cross: a token for cross-attention. sum: added to every step. adaptive: it
    modulates the norms of every block, and is added to the start token (VAR; next-scale models only)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping the label of a training row; 0: no guidance later."""


class LabelCondition(nn.Module):
    """A learned embedding for each label; the last row is the null."""

    described = "a label"

    def __init__(self, config: LabelConfig, context: ConditionContext):
        super().__init__()
        if config.classes is None:
            raise ConfigError("conditions: label.classes is not set; it is the number of labels in the data")
        self.classes = config.classes
        self.dropout = config.dropout
        self.table = Table(config.classes + 1, context.width)

    def check(self, batch: ConditionBatch) -> None:
        """ValueError: wrong shape or dtype of ids, or ids out of range."""
        label = batch.label
        assert label is not None
        if label.dim() != 1 or label.dtype != torch.long:
            raise ValueError(f"label must be long [B], found {label.dtype} {list(label.shape)}")
        if (
            label.device.type == "cpu"
            and label.numel()
            and not -1 <= int(label.min()) <= int(label.max()) < self.classes
        ):
            wrong = label[(label < -1) | (label >= self.classes)][0]
            raise ValueError(
                f"label {int(wrong)} is not one of the model's {self.classes} labels 0 to {self.classes - 1} (-1: none)"
            )

    def none(self, num_rows: int) -> dict[str, Tensor]:
        """The fields of rows without a label."""
        return {"label": torch.full((num_rows,), -1)}

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None]:
        """One token per row: [B, 1, D], all real."""
        label = batch.label
        assert label is not None
        label = torch.where(label < 0, self.classes, label)
        if self.training and self.dropout:
            label = torch.where(rand(label.shape, label.device) < self.dropout, self.classes, label)
        return self.table(label).unsqueeze(1), None
