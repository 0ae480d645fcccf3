"""The condition `embedding`: vectors computed by another model."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ..ops.linear import Linear
from ..ops.row_rng import rand
from .base import ConditionContext
from .batch import ConditionBatch
from .padding import check_lengths, drop_rows, mask_or_none, with_null


class EmbeddingConditionConfig(Config):
    """Vectors of a condition computed by another model, for instance the hidden states of a text encoder."""

    kind: Literal["embedding"] = "embedding"
    width: PositiveInt
    """Width of the given vectors."""
    projection: Literal["linear", "mlp", "none"] = "linear"
    """linear: a learned layer with a bias projects them to the model's width. mlp: two layers without biases and a GELU
    (tanh) between them (LlamaGen). none: they already have it."""
    join: Literal["prefix", "cross"] = "cross"
    """prefix: tokens before the first step. cross: tokens for cross-attention."""
    mask: Literal["padding", "none"] = "padding"
    """Vectors beyond a row's length are zero. padding: they are also masked. none: attention includes the zeros, so a
    row's output depends on its padding (audiocraft's MusicGen)."""
    norm: Literal["rms", "none"] = "rms"
    """Normalization of the vectors for cross-attention, after the projection."""
    null: Literal["learned", "zero", "vectors"] = "learned"
    """What a row without vectors has. learned, zero: one token. vectors: `length` learned vectors; what replaces n
    vectors of a row, in training and for guidance, are the last n of them (LlamaGen)."""
    length: PositiveInt | None = None
    """Largest number of vectors of a row; the tokens of shorter rows are padded to it. null: any number."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping the vectors of a training row; 0: no guidance later."""

    @model_validator(mode="after")
    def _check(self) -> EmbeddingConditionConfig:
        if self.null == "vectors" and self.length is None:
            raise ValueError("null 'vectors' needs length, the number of these vectors")
        return self


class EmbeddingCondition(nn.Module):
    """Given vectors through linear layers; a row without vectors is one token, learned or zero, or learned vectors."""

    described = "an embedding"

    def __init__(self, config: EmbeddingConditionConfig, context: ConditionContext):
        super().__init__()
        if config.projection == "none" and config.width != context.width:
            raise ConfigError(
                f"conditions: embedding.width is {config.width} and the model's width {context.width}; "
                "they must be the same with projection none"
            )
        self.width, self.length = config.width, config.length
        self.dropout, self.pad = config.dropout, config.mask == "padding"
        if config.projection == "linear":
            self.projection = Linear(config.width, context.width)
            nn.init.zeros_(self.projection.bias)
        else:
            self.projection = nn.Identity() if config.projection == "none" else MLP(config.width, context.width)
        self.null = nn.Parameter(torch.zeros(1, context.width)) if config.null == "learned" else None
        self.null_vectors = (
            nn.Parameter(torch.empty(config.length, config.width))
            if config.null == "vectors" and config.length is not None
            else None
        )

    def check(self, batch: ConditionBatch) -> None:
        """ValueError: wrong shape or dtype of vectors or lengths, or lengths beyond the vectors or the limit."""
        vectors = batch.embedding
        assert vectors is not None
        if vectors.dim() != 3 or vectors.shape[-1] != self.width or not vectors.is_floating_point():
            raise ValueError(
                f"embedding must be floating point [B, L, {self.width}], found {vectors.dtype} {list(vectors.shape)}"
            )
        B, L, _ = vectors.shape
        if self.length is not None and L > self.length:
            raise ValueError(
                f"embedding has {L} vectors, the model reads at most {self.length}; give fewer (of a text: shorten it)"
            )
        check_lengths("embedding_lengths", batch.embedding_lengths, B, L, "vectors", "no vectors")

    def none(self, num_rows: int) -> dict[str, Tensor]:
        """The fields of rows without vectors."""
        lengths = torch.zeros(num_rows, dtype=torch.long)
        return {"embedding": torch.zeros(num_rows, 1, self.width), "embedding_lengths": lengths}

    def in_place_of(self, batch: ConditionBatch) -> dict[str, Tensor]:
        """The fields of rows without vectors beside the rows of a batch, for guidance: none, or learned vectors."""
        vectors, lengths = batch.embedding, batch.embedding_lengths
        if self.null_vectors is None or vectors is None or lengths is None:
            return {}
        places = self._null_places(lengths, vectors.shape[1]).to(self.null_vectors.device)
        return {"embedding": self.null_vectors.detach()[places].to(vectors), "embedding_lengths": lengths}

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, L, D] and their mask [B, L]."""
        vectors, lengths = batch.embedding, batch.embedding_lengths
        assert vectors is not None and lengths is not None
        if vectors.shape[1] == 0 or self.length is not None:
            missing = (self.length or 1) - vectors.shape[1]
            vectors = F.pad(vectors, (0, 0, 0, missing))
        if self.null_vectors is not None:
            vectors, lengths = self._with_null_vectors(vectors, lengths)
        elif self.training and self.dropout:
            lengths = drop_rows(lengths, self.dropout)
        if not isinstance(self.projection, nn.Identity):
            vectors = self.projection(vectors.to(next(self.projection.parameters()).dtype))
        index = torch.arange(vectors.shape[1], device=vectors.device)
        tokens = vectors.masked_fill((index >= lengths[:, None]).unsqueeze(-1), 0.0)
        tokens, mask = with_null(tokens, lengths, self.null)
        return tokens, mask_or_none(mask) if self.pad else None

    def _with_null_vectors(self, vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [B, length, width] and lengths [B] with those of empty rows, and in training of a random share,
        replaced by the null vectors."""
        assert self.null_vectors is not None
        absent = lengths == 0
        if self.training and self.dropout:
            absent = absent | (rand(lengths.shape, lengths.device) < self.dropout)
        nulls = self.null_vectors[self._null_places(lengths, vectors.shape[1])]
        lengths = torch.where(lengths == 0, vectors.shape[1], lengths)
        return torch.where(absent[:, None, None], nulls.to(vectors.dtype), vectors), lengths

    def _null_places(self, lengths: Tensor, count: int) -> Tensor:
        """[B, count] long: which null vectors stand for the first `count` vectors of rows with these lengths [B]."""
        assert self.length is not None
        return (torch.arange(count, device=lengths.device) - lengths[:, None]) % self.length


class MLP(nn.Module):
    """second(gelu(first(x))), the tanh approximation of GELU; [*, width] -> [*, hidden]."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.first = Linear(width, hidden, bias=False)
        self.second = Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x), approximate="tanh"))
