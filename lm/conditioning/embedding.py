"""The condition `embedding`: vectors that another model made."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ..ops.linear import Linear
from .base import ConditionContext
from .batch import ConditionBatch
from .padding import check_lengths, dropped, unless_all, with_null


class EmbeddingConditionConfig(Config):
    """Vectors that another model made of a condition, for instance a text encoder's states."""

    kind: Literal["embedding"] = "embedding"
    width: PositiveInt
    """Numbers in a given vector."""
    projection: Literal["linear", "none"] = "linear"
    """linear: a learned layer with a bias takes them to the model's width. none: they have it already."""
    join: Literal["prefix", "cross"] = "cross"
    mask: Literal["padding", "none"] = "padding"
    """What stands beyond a row's length is zero; padding: and it is not seen. none: attention sees the zeros, so a
    row's output depends on how far it is padded (audiocraft's MusicGen)."""
    norm: Literal["rms", "none"] = "rms"
    """Of the vectors that cross-attention reads, after the projection."""
    null: Literal["learned", "zero"] = "learned"
    """What a row without vectors reads."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a training row is given none; 0: no guidance later."""


class EmbeddingCondition(nn.Module):
    """Given vectors through a linear layer; a row without is one token, learned or zero."""

    said = "an embedding"

    def __init__(self, config: EmbeddingConditionConfig, host: ConditionContext):
        super().__init__()
        if config.projection == "none" and config.width != host.width:
            raise ConfigError(
                f"conditions: embedding.width is {config.width} and the model's width {host.width}; "
                "they must be the same with projection none"
            )
        self.width, self.dropout, self.pad = config.width, config.dropout, config.mask == "padding"
        self.projection = Linear(config.width, host.width) if config.projection == "linear" else nn.Identity()
        if isinstance(self.projection, nn.Linear):
            nn.init.zeros_(self.projection.bias)
        self.null = nn.Parameter(torch.zeros(1, host.width)) if config.null == "learned" else None

    def check(self, batch: ConditionBatch) -> None:
        """ValueError: vectors or lengths of another shape or type, or lengths beyond the vectors."""
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
            lengths = dropped(lengths, self.dropout)
        if isinstance(self.projection, nn.Linear):
            vectors = self.projection(vectors.to(self.projection.weight.dtype))
        place = torch.arange(vectors.shape[1], device=vectors.device)
        tokens = vectors.masked_fill((place >= lengths[:, None]).unsqueeze(-1), 0.0)
        tokens, mask = with_null(tokens, lengths, self.null)
        return tokens, unless_all(mask) if self.pad else None
