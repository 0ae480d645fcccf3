"""The condition `embedding`: vectors computed by another model."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ..ops.linear import Linear
from .base import ConditionContext
from .batch import ConditionBatch
from .padding import check_lengths, drop_rows, mask_or_none, with_null


class EmbeddingConditionConfig(Config):
    """Vectors of a condition computed by another model, for instance the hidden states of a text encoder."""

    kind: Literal["embedding"] = "embedding"
    width: PositiveInt
    """Width of the given vectors."""
    projection: Literal["linear", "none"] = "linear"
    """linear: a learned layer with a bias projects them to the model's width. none: they already have it."""
    join: Literal["prefix", "cross"] = "cross"
    """prefix: tokens before the first step. cross: tokens for cross-attention."""
    mask: Literal["padding", "none"] = "padding"
    """Vectors beyond a row's length are zero. padding: they are also masked. none: attention includes the zeros, so a
    row's output depends on its padding (audiocraft's MusicGen)."""
    norm: Literal["rms", "none"] = "rms"
    """Normalization of the vectors for cross-attention, after the projection."""
    null: Literal["learned", "zero"] = "learned"
    """The token of a row without vectors."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping the vectors of a training row; 0: no guidance later."""


class EmbeddingCondition(nn.Module):
    """Given vectors through a linear layer; a row without vectors is one token, learned or zero."""

    described = "an embedding"

    def __init__(self, config: EmbeddingConditionConfig, context: ConditionContext):
        super().__init__()
        if config.projection == "none" and config.width != context.width:
            raise ConfigError(
                f"conditions: embedding.width is {config.width} and the model's width {context.width}; "
                "they must be the same with projection none"
            )
        self.width, self.dropout, self.pad = config.width, config.dropout, config.mask == "padding"
        self.projection = Linear(config.width, context.width) if config.projection == "linear" else nn.Identity()
        if isinstance(self.projection, nn.Linear):
            nn.init.zeros_(self.projection.bias)
        self.null = nn.Parameter(torch.zeros(1, context.width)) if config.null == "learned" else None

    def check(self, batch: ConditionBatch) -> None:
        """ValueError: wrong shape or dtype of vectors or lengths, or lengths beyond the vectors."""
        vectors = batch.embedding
        assert vectors is not None
        if vectors.dim() != 3 or vectors.shape[-1] != self.width or not vectors.is_floating_point():
            raise ValueError(
                f"embedding must be floating point [B, L, {self.width}], found {vectors.dtype} {list(vectors.shape)}"
            )
        B, L, _ = vectors.shape
        check_lengths("embedding_lengths", batch.embedding_lengths, B, L, "vectors", "no vectors")

    def none(self, num_rows: int) -> dict[str, Tensor]:
        """The fields of rows without vectors."""
        lengths = torch.zeros(num_rows, dtype=torch.long)
        return {"embedding": torch.zeros(num_rows, 1, self.width), "embedding_lengths": lengths}

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, L, D] and their mask [B, L]."""
        vectors, lengths = batch.embedding, batch.embedding_lengths
        assert vectors is not None and lengths is not None
        if vectors.shape[1] == 0:
            vectors = vectors.new_zeros(vectors.shape[0], 1, self.width)
        if self.training and self.dropout:
            lengths = drop_rows(lengths, self.dropout)
        if isinstance(self.projection, nn.Linear):
            vectors = self.projection(vectors.to(self.projection.weight.dtype))
        index = torch.arange(vectors.shape[1], device=vectors.device)
        tokens = vectors.masked_fill((index >= lengths[:, None]).unsqueeze(-1), 0.0)
        tokens, mask = with_null(tokens, lengths, self.null)
        return tokens, mask_or_none(mask) if self.pad else None
