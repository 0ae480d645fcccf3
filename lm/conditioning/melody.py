"""The condition `melody`: the pitch classes of a recording, frame by frame.

    one-hot classes [L, bins] ──► repeated or cut to `length` frames ──► linear layer ──► tokens [length, D]

A row without melody has class 0 in all frames. Source: MusicGen (arXiv:2306.05284), section 2.3.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...configs.schema import Config
from ..ops.linear import Linear
from .base import ConditionContext
from .batch import ConditionBatch
from .chroma import ChromaConfig
from .padding import check_lengths, drop_rows


class MelodyConditionConfig(Config):
    """The melody of a recording, as pitch classes."""

    kind: Literal["melody"] = "melody"
    chroma: ChromaConfig = ChromaConfig()
    """Analysis of the recording."""
    length: int = Field(default=235, ge=1, le=1 << 16)
    """Number of tokens; a shorter melody is repeated, a longer one is cut."""
    join: Literal["prefix"] = "prefix"
    """Tokens before the first step."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping the melody of a training row; 0: no guidance later."""


class MelodyCondition(nn.Module):
    """Pitch classes through a linear layer."""

    described = "a melody"

    def __init__(self, config: MelodyConditionConfig, context: ConditionContext):
        super().__init__()
        self.bins, self.length, self.dropout = config.chroma.bins, config.length, config.dropout
        self.projection = Linear(self.bins, context.width)
        nn.init.zeros_(self.projection.bias)

    def check(self, batch: ConditionBatch) -> None:
        """ValueError: wrong shape or dtype of classes or lengths, or lengths beyond the classes."""
        melody = batch.melody
        assert melody is not None
        if melody.dim() != 3 or melody.shape[-1] != self.bins or not melody.is_floating_point():
            raise ValueError(
                f"melody must be floating point [B, L, {self.bins}], found {melody.dtype} {list(melody.shape)}"
            )
        check_lengths("melody_lengths", batch.melody_lengths, melody.shape[0], melody.shape[1], "frames", "no melody")

    def none(self, num_rows: int) -> dict[str, Tensor]:
        """The fields of rows without melody."""
        lengths = torch.zeros(num_rows, dtype=torch.long)
        return {"melody": torch.zeros(num_rows, 1, self.bins), "melody_lengths": lengths}

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, length, D], all real."""
        melody, lengths = batch.melody, batch.melody_lengths
        assert melody is not None and lengths is not None
        if melody.shape[1] == 0:
            melody = melody.new_zeros(melody.shape[0], 1, self.bins)
        if self.training and self.dropout:
            lengths = drop_rows(lengths, self.dropout)
        place = torch.arange(self.length, device=melody.device) % lengths.clamp(min=1)[:, None]
        classes = melody.gather(1, place[..., None].expand(-1, -1, self.bins))
        none = torch.zeros(self.bins, device=melody.device, dtype=melody.dtype)
        none[0] = 1.0
        classes = torch.where((lengths == 0)[:, None, None], none, classes)
        return self.projection(classes.to(self.projection.weight.dtype)), None
