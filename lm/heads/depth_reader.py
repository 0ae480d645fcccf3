"""What a depth transformer reads of the sub-tokens of a step: one vector each, for all but the last.

    input        vector of a sub-token
    embedding    a row of a table of the depth transformer's width
    projected    a row of a table of the backbone's width       both through the layer that maps the backbone's hidden
    backbone     a row of the table of the backbone's input     state to the depth transformer's width
    codes        the sum of the tokenizer's code vectors so far, through a linear layer of its own

Source: `codes` is RQ-Transformer's (arXiv:2203.01941). `backbone` is that of CSM (github.com/SesameAILabs/csm) and
Qwen3-TTS (github.com/QwenLM/Qwen3-TTS): the backbone reads the sum of a frame's rows, the depth part each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..layers.embedding import Table
from ..layers.input_embedding import EmbeddingInput, NoisyInput, check_code_vectors
from ..ops.linear import Linear
from ..patterns.sub_tokens import SubTokens
from .base import HeadContext

DepthInput = Literal["embedding", "projected", "backbone", "codes"]


class SubTokenEmbedding(nn.Module):
    """A learned embedding for every value of every sub-token except the last."""

    starts: Tensor

    def __init__(self, sub_tokens: SubTokens, width: int):
        super().__init__()
        sizes = sub_tokens.input_sizes[:-1]
        self.table = Table(sum(sizes), width)
        self.register_buffer("starts", _starts(sizes), persistent=False)

    def forward(self, sub_tokens: Tensor, first: int) -> Tensor:
        """[N, n - first, width] for sub-tokens first .. n - 1, given all of them up to there [N, n]."""
        return self.table(sub_tokens[:, first:] + self.starts[first : sub_tokens.shape[1]])


class BackboneEmbedding(nn.Module):
    """The rows of the backbone's input embedding, whose table stays the backbone's."""

    def __init__(self, input: nn.Module | None):
        super().__init__()
        embedding = input.inner if isinstance(input, NoisyInput) else input
        assert isinstance(embedding, EmbeddingInput)  # LMConfig checks it
        # In a tuple it is no part of this module: its table is saved, initialized and trained once, with the backbone.
        self.embedding = (embedding,)

    def forward(self, sub_tokens: Tensor, first: int) -> Tensor:
        """Like `SubTokenEmbedding.forward`, [N, n - first, D]."""
        (embedding,) = self.embedding
        return embedding.table(sub_tokens[:, first:] + embedding.starts[first : sub_tokens.shape[1], 0])


class CodeSumEmbedding(nn.Module):
    """The sum of the tokenizer's code vectors of the codes so far, through a linear layer; special ids have learned
    embeddings and add nothing to the sum."""

    vectors: Tensor
    starts: Tensor
    cardinalities: Tensor

    def __init__(self, context: HeadContext, width: int):
        super().__init__()
        arrangement = context.arrangement
        vectors = check_code_vectors(context.code_vectors, arrangement, "lm.head input 'codes'")
        K, V = vectors.shape[:2]
        self.register_buffer("vectors", vectors.flatten(0, 1), persistent=False)  # saved in the tokenizer's file
        self.register_buffer("starts", torch.arange(0, K * V, V, device="cpu"), persistent=False)
        self.register_buffer("cardinalities", torch.tensor(arrangement.cardinalities, device="cpu"), persistent=False)
        self.num_specials = arrangement.num_specials
        self.linear = Linear(vectors.shape[-1], width, bias=False)
        self.specials = Table((K - 1) * self.num_specials, width)

    def forward(self, sub_tokens: Tensor, first: int) -> Tensor:
        """Like `SubTokenEmbedding.forward`."""
        n = sub_tokens.shape[1]
        beyond = sub_tokens - self.cardinalities[:n]
        special = (beyond >= 0).unsqueeze(-1)
        rows = torch.where(beyond >= 0, 0, sub_tokens) + self.starts[:n]
        so_far = nn.functional.embedding(rows, self.vectors).masked_fill(special, 0.0).cumsum(dim=1)
        rows = beyond.clamp(min=0) + self.num_specials * torch.arange(n, device=sub_tokens.device)
        learned = self.specials(rows[:, first:]).masked_fill(~special[:, first:], 0.0)
        return self.linear(so_far[:, first:].to(learned.dtype)) + learned


def make_reader(input: DepthInput, sub_tokens: SubTokens, context: HeadContext, width: int) -> nn.Module:
    """The reader of this input; the vectors of `projected` and `backbone` have the backbone's width.

    Args:
        width: of the depth transformer.
    Raises:
        ConfigError: input `codes` without the tokenizer's code vectors.
    """
    if input == "codes":
        return CodeSumEmbedding(context, width)
    if input == "backbone":
        return BackboneEmbedding(context.input)
    return SubTokenEmbedding(sub_tokens, context.width if input == "projected" else width)


def _starts(sizes: Sequence[int]) -> Tensor:
    """First row of each sub-token's table."""
    return torch.tensor([sum(sizes[:j]) for j in range(len(sizes))], device="cpu")
