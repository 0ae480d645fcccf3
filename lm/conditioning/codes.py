"""The condition `codes`: a reference given as codes of the same tokenizer, for instance a voice or an image.

    prompt   a0 a1 a2  .        the K codes of each frame become one vector, plus a learned marker that
             b0 b1 b2  .        distinguishes them from generated frames
    tokens   p0 p1 p2  .        masked beyond a row's length; a row without a prompt has one null token

The reference is not the beginning of the samples: it is not part of the result.
Source: the acoustic prompt of VALL-E (arXiv:2301.02111), the style codes of MusicGen-Style (arXiv:2407.12563).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config
from ..layers.input_embedding import INPUTS, InputConfig
from ..patterns.pattern import CodebookPattern, ParallelConfig
from .base import ConditionContext
from .batch import ConditionBatch
from .encoder import Encoder, encode_sequence
from .padding import check_lengths, drop_rows, initial_position_scale


class CodesConditionConfig(Config):
    """A reference in codes of the same tokenizer: a voice, an image."""

    kind: Literal["codes"] = "codes"
    max_frames: PositiveInt
    """Longest prompt in frames: longer ones are rejected; in training, random crops of at most this length are used."""
    join: Literal["prefix", "cross"] = "prefix"
    """prefix: tokens before the first step. cross: tokens for cross-attention."""
    input: InputConfig | None = None
    """Input embedding of a frame, as lm.input, with separate weights; null: the model's own input embedding."""
    layers: int = Field(default=0, ge=0, le=64)
    """Layers of a bidirectional transformer over the prompt, with the model's width; 0: none."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping the prompt of a training row; 0: no guidance later."""


class CodesCondition(nn.Module):
    """Codes [B, K, L] through an input embedding, plus a marker; a row without a prompt is one null token."""

    described = "a prompt of codes"

    def __init__(self, config: CodesConditionConfig, context: ConditionContext):
        super().__init__()
        self.cardinalities, self.max_frames, self.dropout = context.cardinalities, config.max_frames, config.dropout
        self.context = context
        self.input = None
        if config.input is not None:
            frames = CodebookPattern(ParallelConfig(), context.cardinalities)
            self.input = INPUTS[config.input.kind](config.input, frames, context.width, context.code_vectors)
        self.marker = nn.Parameter(torch.zeros(1, context.width))
        self.null = nn.Parameter(torch.zeros(1, context.width))
        self.place_scale = nn.Parameter(initial_position_scale(context.width)) if config.join == "cross" else None
        self.encoder = (
            Encoder(context.width, context.heads, config.layers, context.rope_base) if config.layers else None
        )

    def check(self, batch: ConditionBatch) -> None:
        """ValueError: wrong shape or dtype of codes or lengths, too many frames, or codes out of range."""
        codes, lengths, K = batch.codes, batch.codes_lengths, len(self.cardinalities)
        assert codes is not None
        if codes.dim() != 3 or codes.dtype != torch.long or codes.shape[1] != K:
            raise ValueError(
                f"a prompt of codes must be long [B, {K}, L], one row for each codebook, found {codes.dtype} "
                f"{list(codes.shape)}"
            )
        check_lengths("codes_lengths", lengths, codes.shape[0], codes.shape[2], "frames", "no prompt")
        assert lengths is not None
        if codes.device.type != "cpu":
            return
        longest = int(lengths.max()) if len(lengths) else 0
        if longest > self.max_frames:
            raise ValueError(
                f"a prompt of codes has {longest} frames, the model reads at most {self.max_frames}; give the first "
                f"{self.max_frames}"
            )
        inside = torch.arange(codes.shape[2]) < lengths[:, None]
        for k, V in enumerate(self.cardinalities):
            wrong = codes[:, k][inside & ((codes[:, k] < 0) | (codes[:, k] >= V))]
            if wrong.numel():
                raise ValueError(
                    f"codebook {k} of a prompt of codes holds codes 0 to {V - 1}, found {int(wrong[0])}; encode it "
                    "with the model's tokenizer"
                )

    def none(self, num_rows: int) -> dict[str, Tensor]:
        """The fields of rows without a prompt."""
        codes = torch.zeros(num_rows, len(self.cardinalities), 1, dtype=torch.long)
        return {"codes": codes, "codes_lengths": torch.zeros(num_rows, dtype=torch.long)}

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, L, D] and their mask [B, L]."""
        codes, lengths = batch.codes, batch.codes_lengths
        assert codes is not None and lengths is not None
        if codes.shape[2] == 0:
            codes = codes.new_zeros(*codes.shape[:2], 1)
        if self.training and self.dropout:
            lengths = drop_rows(lengths, self.dropout)
        index = torch.arange(codes.shape[2], device=codes.device)
        read = self.context.input if self.input is None else self.input
        assert read is not None
        tokens = read(codes.masked_fill((index >= lengths[:, None]).unsqueeze(1), 0)) + self.marker
        return encode_sequence(tokens, lengths, self.null, self.place_scale, self.encoder)
