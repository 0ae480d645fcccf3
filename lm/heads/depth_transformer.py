"""The depth head: a small causal transformer over the codes of one step.

    position     0         1         2             n
    input        h         c0        c1            h is the backbone's hidden state before this step,
    predicts     c0        c1        c2            c0 c1 c2 the ids of the step, special ids included

Every step starts fresh: only h carries information between steps. In training all steps of all rows run in parallel as
one batch of short sequences; in generation the positions run sequentially, with a KV cache that is allocated once and
overwritten at every step.

Source: RQ-Transformer (arXiv:2203.01941). The same idea is the depth decoder of Moshi (arXiv:2410.00037) and CSM, the
dual AR of Fish-Speech (arXiv:2411.01156), and the hierarchical parallel of QTTS (arXiv:2507.12197).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ..kv_cache.base import CacheShape, KVCache
from ..layers.config import TransformerConfig
from ..layers.embedding import Table
from ..layers.input_embedding import check_code_vectors
from ..layers.transformer import Transformer, initialize_
from ..ops.linear import Linear
from ..ops.loss import cross_entropy
from ..ops.row_rng import Dropout
from ..patterns.pattern import CodebookPattern
from ..patterns.sub_tokens import SubTokens, equal_digits
from .base import HeadContext


class DepthSettings(Config):
    """The transformer over the sub-tokens of a step."""

    width: int | None = Field(default=None, ge=8, le=65536)
    """Width of its hidden states; null: equal to the backbone's."""
    layers: int = Field(default=4, ge=1, le=1024)
    """Number of transformer layers."""
    heads: int = Field(default=4, ge=1, le=1024)
    """Number of query heads, a divisor of width."""
    kv_heads: PositiveInt | None = None
    """Number of key/value heads, a divisor of heads; null: equal to heads."""
    ffn: int | None = Field(default=None, ge=8, le=1 << 20)
    """Width of the feed-forward layer; null: 8/3 of width, rounded up to a multiple of 32."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after each attention, each feed-forward and the input."""
    first: Literal["depth", "backbone"] = "depth"
    """What predicts the first sub-token: depth, the depth transformer; backbone, a linear layer on its hidden state."""
    output: Literal["own", "shared"] = "own"
    """Output layers: own, one per sub-token; shared, one for all."""
    trained_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps, chosen at random, on which the depth transformer is trained each time: less is faster, and
    the expected loss is the same. A first sub-token predicted by the backbone is trained on all steps."""


class DepthHeadConfig(DepthSettings):
    """Predicts the codes of a step sequentially, each conditioned on the previous ones."""

    kind: Literal["depth"] = "depth"
    input: Literal["embedding", "codes"] = "embedding"
    """Input for each code: a learned embedding, or the sum of the tokenizer's code vectors up to this codebook through
    a learned linear layer (for residual codes)."""


class FactorHeadConfig(DepthSettings):
    """Predicts a large code as several sub-tokens with small vocabularies, each conditioned on the previous ones."""

    kind: Literal["factor"] = "factor"
    sizes: tuple[Annotated[int, Field(ge=2)], ...] = Field(min_length=2)
    """Vocabulary sizes of a code's sub-tokens; their product is the codebook size: [64, 4096] for 2^18 codes."""


class DepthHead(nn.Module):
    """The depth head, as drawn above; the methods implement `base.Head`."""

    period = 1

    def __init__(
        self,
        config: DepthHeadConfig | FactorHeadConfig,
        context: HeadContext,
    ):
        super().__init__()
        width, arrangement, code_vectors = context.width, context.arrangement, context.code_vectors
        sub_tokens = self.sub_tokens = SubTokens(arrangement, _digits(config, arrangement))
        J, own = len(sub_tokens), config.width or width
        kv_heads = config.kv_heads or config.heads
        self.backbone_first, self.trained_share = config.first == "backbone", config.trained_share
        _check(config, own, kv_heads, J)
        self.stages = tuple((j,) for j in range(J))
        self.cache_shape = (config.layers, kv_heads, J, own // config.heads)
        self.first = Linear(width, sub_tokens.output_sizes[0], bias=False) if self.backbone_first else None
        self.project = Linear(width, own, bias=False)
        self.positions = Table(J, own)
        self.reader = None if J == 1 else _make_reader(config, sub_tokens, arrangement, own, code_vectors)
        self.dropout = Dropout(config.dropout)
        ffn = config.ffn or -(-8 * own // 3 // 32) * 32
        self.transformer = Transformer(
            TransformerConfig(own, config.layers, config.heads, kv_heads, ffn, dropout=config.dropout)
        )
        sizes = sub_tokens.output_sizes[self.backbone_first :]
        self.outputs = nn.ModuleList(
            Linear(own, size, bias=False) for size in ([max(sizes)] if config.output == "shared" else sizes)
        )

    def initialize_(self) -> None:
        """Initialize the depth transformer with its own width and number of layers."""
        initialize_(self, self.positions.weight.shape[1], self.cache_shape[0])

    # Whole sequences

    def forward(self, hidden: Tensor, ids: Tensor | None, first_step: int = 0) -> Tensor:
        B, S, D = hidden.shape
        assert ids is not None
        flat = hidden.reshape(B * S, D)
        states = self._states(flat, self._cells(self.sub_tokens.split(ids)))
        V = max(self.sub_tokens.output_sizes)
        logits = [self._logits(j, flat, states[:, j]) for j in range(len(self.sub_tokens))]
        padded = [nn.functional.pad(x, (0, V - x.shape[-1]), value=float("-inf")) for x in logits]
        return torch.stack(padded, dim=1).view(B, S, len(logits), V)

    def losses(self, hidden: Tensor, ids: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
        B, S, D = hidden.shape
        flat, targets = hidden.reshape(B * S, D), self._cells(self.sub_tokens.targets(ids, mask))
        sub_tokens = self._cells(self.sub_tokens.split(ids))
        first = None
        if self.first is not None:
            first = cross_entropy(self.first(flat), targets[:, 0], label_smoothing)
        chosen = self._choose(B * S, hidden.device)
        if chosen is not None:
            flat, targets, sub_tokens = flat[chosen], targets[chosen], sub_tokens[chosen]
        states = self._states(flat, sub_tokens)
        # Sub-token by sub-token: their logits are never padded to the widest and concatenated.
        terms = [
            cross_entropy(self._logits(j, flat, states[:, j]), targets[:, j], label_smoothing)
            for j in range(self.backbone_first, len(self.sub_tokens))
        ]
        found = torch.stack(terms, dim=1)
        if chosen is not None:
            found = found.new_zeros(B * S, found.shape[1]).index_copy(0, chosen, found * (B * S / len(chosen)))
        if first is not None:
            found = torch.cat([first.unsqueeze(1), found], dim=1)
        return self.sub_tokens.sum(found.view(B, S, -1).transpose(1, 2))

    def _choose(self, cells: int, device: torch.device) -> Tensor | None:
        """The steps of all rows used for training, None for all."""
        if not self.training or self.trained_share == 1:
            return None
        return torch.randperm(cells, device=device)[: max(1, round(cells * self.trained_share))]

    def _states(self, hidden: Tensor, sub_tokens: Tensor) -> Tensor:
        """Hidden states [N, J, D'] from N steps' backbone states [N, D] and sub-tokens [N, J]."""
        return self.transformer(self._inputs(hidden, sub_tokens, 0, len(self.sub_tokens)), None, causal=True)

    def _inputs(self, hidden: Tensor, sub_tokens: Tensor, first: int, last: int) -> Tensor:
        """Inputs of positions first .. last - 1, [N, last - first, D']."""
        inputs = [self.project(hidden).unsqueeze(1)] if first == 0 else []
        if last > 1 and self.reader is not None:
            inputs.append(self.reader(sub_tokens[:, : last - 1], max(first - 1, 0)))
        x = torch.cat(inputs, dim=1)
        return self.dropout(x + self.positions(torch.arange(first, last, device=x.device)))

    def _logits(self, j: int, hidden: Tensor, state: Tensor) -> Tensor:
        """[N, values of sub-token j] from the backbone state [N, D] and the depth state at its position [N, D']."""
        if self.first is not None and j == 0:
            return self.first(hidden)
        output = self.outputs[0] if len(self.outputs) == 1 else self.outputs[j - self.backbone_first]
        return output(state)[:, : self.sub_tokens.output_sizes[j]]

    @staticmethod
    def _cells(x: Tensor) -> Tensor:
        """Reshape [B, J, S] to [B * S, J]."""
        return x.transpose(1, 2).flatten(0, 1)

    # Decoding, one step at a time

    def stages_at(self, step: int) -> tuple[tuple[int, ...], ...]:
        return self.stages

    def start(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        self.transformer.refresh()
        layers, kv_heads, J, head_width = self.cache_shape
        return KVCache(CacheShape(layers, num_rows, kv_heads, head_width, J, dtype, device))

    def begin(self, memory: KVCache, hidden: Tensor, step: int) -> _Begun:
        memory.rewind(0)
        return _Begun(memory, hidden)

    def predict(self, begun: _Begun, stage: int, sub_tokens: Tensor) -> Tensor:
        state = begun.hidden  # not used if the backbone predicts it
        if stage >= self.backbone_first:
            cache = begun.cache
            x = self._inputs(begun.hidden, sub_tokens, cache.length, stage + 1)
            state = self.transformer(x, None, cache=cache)[:, -1]
        return self._logits(stage, begun.hidden, state).unsqueeze(1)


@dataclass(frozen=True)
class _Begun:
    cache: KVCache
    """Positions of this step so far."""
    hidden: Tensor
    """[B, D]."""


class SubTokenEmbedding(nn.Module):
    """A learned embedding for every value of every sub-token except the last."""

    starts: Tensor

    def __init__(self, sub_tokens: SubTokens, width: int):
        super().__init__()
        sizes = sub_tokens.input_sizes[:-1]
        self.table = Table(sum(sizes), width)
        starts = [sum(sizes[:j]) for j in range(len(sizes))]
        self.register_buffer("starts", torch.tensor(starts, device="cpu"), persistent=False)

    def forward(self, sub_tokens: Tensor, first: int) -> Tensor:
        """[N, n - first, D'] for sub-tokens first .. n - 1, given all of them up to there [N, n]."""
        return self.table(sub_tokens[:, first:] + self.starts[first : sub_tokens.shape[1]])


class CodeSumEmbedding(nn.Module):
    """The sum of the tokenizer's code vectors of the codes so far, through a linear layer; special ids have learned
    embeddings and add nothing to the sum."""

    vectors: Tensor
    starts: Tensor
    cardinalities: Tensor

    def __init__(self, arrangement: CodebookPattern, width: int, code_vectors: Tensor | None):
        super().__init__()
        vectors = check_code_vectors(code_vectors, arrangement, "lm.head input 'codes'")
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


def _make_reader(
    config: DepthSettings, sub_tokens: SubTokens, arrangement: CodebookPattern, width: int, code_vectors: Tensor | None
) -> nn.Module:
    if isinstance(config, DepthHeadConfig) and config.input == "codes":
        return CodeSumEmbedding(arrangement, width, code_vectors)
    return SubTokenEmbedding(sub_tokens, width)


def _digits(config: DepthSettings, arrangement: CodebookPattern) -> list[tuple[int, ...]] | None:
    """Vocabulary sizes of the sub-tokens of each codebook; None: its ids are the sub-tokens."""
    if not isinstance(config, FactorHeadConfig):
        return None
    return equal_digits(config.sizes, arrangement, "lm.head.sizes")


def _check(config: DepthSettings, width: int, kv_heads: int, J: int) -> None:
    if width % config.heads:
        raise ConfigError(f"lm.head: width {width} is not a multiple of heads {config.heads}")
    if config.heads % kv_heads:
        raise ConfigError(f"lm.head: heads {config.heads} is not a multiple of kv_heads {kv_heads}")
    if J == 1 and config.first == "backbone":
        raise ConfigError(
            "lm.head: first 'backbone' needs two codebooks or more, one of them for the depth transformer"
        )
