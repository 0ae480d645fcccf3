"""The condition `text`: a transcript or a caption."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ...tokenize.text.registry import TextConfig
from ..layers.embedding import Table
from .base import ConditionContext
from .batch import ConditionBatch
from .encoder import Encoder, encode_sequence
from .padding import check_lengths, drop_rows, initial_position_scale


class TextConditionConfig(Config):
    """A transcript or a caption."""

    kind: Literal["text"] = "text"
    text: TextConfig
    """The text tokenizer."""
    vocab_size: PositiveInt | None = None
    """Size of the text tokenizer; null: filled in when it is built."""
    join: Literal["prefix", "cross"] = "prefix"
    """prefix: tokens before the first step. cross: tokens for cross-attention."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping the text of a training row; 0: no guidance later."""
    layers: int = Field(default=0, ge=0, le=64)
    """Layers of a bidirectional transformer over the text, with the model's width; 0: embeddings only."""


class TextCondition(nn.Module):
    """Embeddings of text ids, optionally through a bidirectional transformer; a row without text is one null token."""

    described = "a text"

    def __init__(self, config: TextConditionConfig, context: ConditionContext):
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError("conditions: text.vocab_size is not set; it is the size of the text tokenizer")
        self.vocab_size = config.vocab_size
        self.dropout = config.dropout
        self.table = Table(config.vocab_size, context.width)
        self.null = nn.Parameter(torch.zeros(1, context.width))
        self.place_scale = nn.Parameter(initial_position_scale(context.width)) if config.join == "cross" else None
        self.encoder = (
            Encoder(context.width, context.heads, config.layers, context.rope_base) if config.layers else None
        )

    def check(self, batch: ConditionBatch) -> None:
        """ValueError: wrong shape or dtype of ids or lengths, or values out of range."""
        text, lengths = batch.text, batch.text_lengths
        assert text is not None
        if text.dim() != 2 or text.dtype != torch.long:
            raise ValueError(f"text must be long [B, L], found {text.dtype} {list(text.shape)}")
        check_lengths("text_lengths", lengths, text.shape[0], text.shape[1], "ids", "no text")
        assert lengths is not None
        if text.device.type != "cpu":
            return
        ids = text[torch.arange(text.shape[1]) < lengths[:, None]]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise ValueError(
                f"text id {int(wrong)} is not one of 0 to {self.vocab_size - 1}; encode with the model's text tokenizer"
            )

    def none(self, num_rows: int) -> dict[str, Tensor]:
        """The fields of rows without text."""
        return {
            "text": torch.zeros(num_rows, 1, dtype=torch.long),
            "text_lengths": torch.zeros(num_rows, dtype=torch.long),
        }

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, L, D] and their mask [B, L]."""
        text, lengths = batch.text, batch.text_lengths
        assert text is not None and lengths is not None
        if text.shape[1] == 0:
            text = text.new_zeros(text.shape[0], 1)
        if self.training and self.dropout:
            lengths = drop_rows(lengths, self.dropout)
        index = torch.arange(text.shape[1], device=text.device)
        tokens = self.table(torch.where(index < lengths[:, None], text, 0))
        return encode_sequence(tokens, lengths, self.null, self.place_scale, self.encoder)
