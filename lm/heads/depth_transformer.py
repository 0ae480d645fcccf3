"""The depth head: a small causal transformer over the codes of one step.

    position     0         1         2             n
    input        h         c0        c1            h is the backbone's hidden state before this step,
    predicts     c0        c1        c2            c0 c1 c2 the ids of the step, special ids included

If the backbone predicts c0, position 0 still reads h, but predicts nothing. depth_reader.py embeds the ids.

Every step starts fresh: only h carries information between steps. In training all steps of all rows run in parallel as
one batch of short sequences; in generation the positions run sequentially, with a KV cache that is allocated once and
overwritten at every step.

Source: RQ-Transformer (arXiv:2203.01941). The same idea is the depth decoder of Moshi (arXiv:2410.00037) and CSM, the
dual AR of Fish-Speech (arXiv:2411.01156), the hierarchical parallel of QTTS (arXiv:2507.12197) and the code predictor
of Qwen3-TTS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ..kv_cache.base import CacheShape, KVCache
from ..layers.config import TransformerConfig
from ..layers.embedding import Table
from ..layers.transformer import Transformer, initialize_
from ..ops.linear import Linear
from ..ops.loss import cross_entropy
from ..ops.rotary import PAIRS, Llama3ScalingConfig, rotary_table
from ..ops.row_rng import Dropout
from ..patterns.pattern import CodebookPattern
from ..patterns.sub_tokens import SubTokens, equal_digits
from .base import HeadContext
from .depth_reader import DepthInput, make_reader


class TablePositionsConfig(Config):
    """A learned vector for each position, added to its input."""

    kind: Literal["table"] = "table"


class RopePositionsConfig(Config):
    """Rotary embedding: position 0 reads the hidden state, position 1 the first sub-token."""

    kind: Literal["rope"] = "rope"
    base: PositiveFloat = 10000.0
    """Base of the rotary frequencies: the longest wavelength is about 6 times this number of positions."""
    scaling: Llama3ScalingConfig | None = None
    """Change of the frequencies; null: none."""


class NoPositionsConfig(Config):
    """Nothing but the causal order distinguishes the positions."""

    kind: Literal["none"] = "none"


class DepthSettings(Config):
    """The transformer over the sub-tokens of a step."""

    width: int | None = Field(default=None, ge=8, le=65536)
    """Width of its hidden states; null: equal to the backbone's."""
    layers: int = Field(default=4, ge=1, le=1024)
    """Number of transformer layers."""
    heads: int = Field(default=4, ge=1, le=1024)
    """Number of query heads, a divisor of width unless head_dim is set."""
    kv_heads: PositiveInt | None = None
    """Number of key/value heads, a divisor of heads; null: equal to heads."""
    head_dim: int | None = Field(default=None, ge=2, le=4096)
    """Width of a head; null: width / heads."""
    ffn: int | None = Field(default=None, ge=8, le=1 << 20)
    """Width of the feed-forward layer; null: 8/3 of width, rounded up to a multiple of 32."""
    norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    """Epsilon added to the mean square."""
    qk_norm: bool = False
    """Normalize queries and keys of each head."""
    positions: Annotated[
        TablePositionsConfig | RopePositionsConfig | NoPositionsConfig, Field(discriminator="kind")
    ] = TablePositionsConfig()
    """Position encoding of the sub-tokens of a step."""
    projection: Literal["linear", "affine", "none"] = "linear"
    """Layer that maps the backbone's hidden state to this width. linear: without a bias. affine: with one. none: the
    widths are equal."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after each attention, each feed-forward and the input."""
    first: Literal["depth", "backbone"] = "depth"
    """What predicts the first sub-token: depth, the depth transformer; backbone, a linear layer on its hidden state."""
    output: Literal["own", "shared"] = "own"
    """Output layers: own, one per sub-token; shared, one for all."""
    spare_outputs: int = Field(default=0, ge=0, le=1024)
    """Outputs of each layer beyond those of its sub-token, which are never read: public models have some."""
    trained_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps, chosen at random, on which the depth transformer is trained each time: less is faster, and
    the expected loss is the same. A first sub-token predicted by the backbone is trained on all steps."""


class DepthHeadConfig(DepthSettings):
    """Predicts the codes of a step sequentially, each conditioned on the previous ones."""

    kind: Literal["depth"] = "depth"
    input: DepthInput = "embedding"
    """Input for each code. embedding: a learned embedding. projected: one of the backbone's width, through the layer
    that maps the hidden state. backbone: the backbone's own input embedding, through that layer. codes: the sum of the
    tokenizer's code vectors up to this codebook through a learned linear layer (for residual codes)."""


class FactorHeadConfig(DepthSettings):
    """Predicts a large code as several sub-tokens with small vocabularies, each conditioned on the previous ones."""

    kind: Literal["factor"] = "factor"
    sizes: tuple[Annotated[int, Field(ge=2)], ...] = Field(min_length=2)
    """Vocabulary sizes of a code's sub-tokens; their product is the codebook size: [64, 4096] for 2^18 codes."""


class DepthHead(nn.Module):
    """The depth head, as drawn above; the methods implement `base.Head`."""

    period = 1

    def __init__(self, config: DepthHeadConfig | FactorHeadConfig, context: HeadContext):
        super().__init__()
        sub_tokens = self.sub_tokens = SubTokens(context.arrangement, _digits(config, context.arrangement))
        J, width = len(sub_tokens), context.width
        own = self.width = config.width or width
        kv_heads = config.kv_heads or config.heads
        self.backbone_first, self.trained_share = config.first == "backbone", config.trained_share
        head_width = config.head_dim or own // config.heads
        _check(config, width, own, kv_heads, head_width, J)
        self.stages = tuple((j,) for j in range(J))
        self.cache_shape = (config.layers, kv_heads, J, head_width)
        self.rope = config.positions if isinstance(config.positions, RopePositionsConfig) else None
        spare, first = config.spare_outputs, sub_tokens.output_sizes[0]
        self.first = Linear(width, first + spare, bias=False) if self.backbone_first else None
        self.project = _make_projection(config.projection, width, own)
        self.positions = Table(J, own) if isinstance(config.positions, TablePositionsConfig) else None
        read = config.input if isinstance(config, DepthHeadConfig) else "embedding"
        self.reader = None if J == 1 else make_reader(read, sub_tokens, context, own)
        self.projects_codes = read in ("projected", "backbone")
        self.dropout = Dropout(config.dropout)
        ffn = config.ffn or -(-8 * own // 3 // 32) * 32
        self.transformer = Transformer(
            TransformerConfig(
                width=own,
                layers=config.layers,
                heads=config.heads,
                kv_heads=kv_heads,
                ffn=ffn,
                qk_norm=config.qk_norm,
                dropout=config.dropout,
                norm_eps=config.norm_eps,
                head_dim=config.head_dim,
            )
        )
        sizes = sub_tokens.output_sizes[self.backbone_first :]
        self.outputs = nn.ModuleList(
            Linear(own, size + spare, bias=False) for size in ([max(sizes)] if config.output == "shared" else sizes)
        )

    def initialize_(self) -> None:
        """Initialize the depth transformer with its own width and number of layers."""
        initialize_(self, self.width, self.cache_shape[0])

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
            first = cross_entropy(self._first_logits(flat), targets[:, 0], label_smoothing)
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
        x = self._inputs(hidden, sub_tokens, 0, len(self.sub_tokens))
        return self.transformer(x, self._rotary(x.device), causal=True)

    def _inputs(self, hidden: Tensor, sub_tokens: Tensor, first: int, last: int) -> Tensor:
        """Inputs of positions first .. last - 1, [N, last - first, D']."""
        inputs = [self.project(hidden).unsqueeze(1)] if first == 0 else []
        if last > 1 and self.reader is not None:
            read = self.reader(sub_tokens[:, : last - 1], max(first - 1, 0))
            inputs.append(self.project(read) if self.projects_codes else read)
        x = torch.cat(inputs, dim=1)
        if self.positions is not None:
            x = x + self.positions(torch.arange(first, last, device=x.device))
        return self.dropout(x.to(hidden.dtype))  # under autocast a projection alone would be half precision

    def _rotary(self, device: torch.device) -> Tensor | None:
        """Rotary table of all positions, [1, J, 1, E / 2]; None without rotary embedding."""
        if self.rope is None:
            return None
        positions = torch.arange(len(self.sub_tokens), device=device).view(1, -1, 1)
        return rotary_table(positions, self.cache_shape[3], self.rope.base, self.rope.scaling)

    def _logits(self, j: int, hidden: Tensor, state: Tensor) -> Tensor:
        """[N, values of sub-token j] from the backbone state [N, D] and the depth state at its position [N, D']."""
        if self.first is not None and j == 0:
            return self._first_logits(hidden)
        output = self.outputs[0] if len(self.outputs) == 1 else self.outputs[j - self.backbone_first]
        return output(state)[:, : self.sub_tokens.output_sizes[j]]

    def _first_logits(self, hidden: Tensor) -> Tensor:
        """[N, values of sub-token 0] from the backbone state [N, D]."""
        assert self.first is not None
        return self.first(hidden)[:, : self.sub_tokens.output_sizes[0]]

    @staticmethod
    def _cells(x: Tensor) -> Tensor:
        """Reshape [B, J, S] to [B * S, J]."""
        return x.transpose(1, 2).flatten(0, 1)

    # Decoding, one step at a time

    def stages_at(self, step: int) -> tuple[tuple[int, ...], ...]:
        return self.stages

    def start(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> DepthMemory:
        self.transformer.refresh()
        layers, kv_heads, J, head_width = self.cache_shape
        cache = KVCache(CacheShape(layers, num_rows, kv_heads, head_width, J, dtype, device))
        return DepthMemory(cache, self._rotary(device))

    def begin(self, memory: DepthMemory, hidden: Tensor, step: int) -> _Begun:
        memory.cache.rewind(0)
        return _Begun(memory, hidden)

    def predict(self, begun: _Begun, stage: int, sub_tokens: Tensor) -> Tensor:
        state = begun.hidden  # not used if the backbone predicts it
        if stage >= self.backbone_first:
            cache, table = begun.memory.cache, begun.memory.rotary
            first, last = cache.length, stage + 1
            x = self._inputs(begun.hidden, sub_tokens, first, last)
            state = self.transformer(x, None if table is None else table[:, first:last], cache=cache)[:, -1]
        return self._logits(stage, begun.hidden, state).unsqueeze(1)


@dataclass(frozen=True)
class DepthMemory:
    """What the steps of a generation share."""

    cache: KVCache
    """Positions of the current step so far."""
    rotary: Tensor | None
    """[1, J, 1, E / 2], of all positions."""

    def parts(self) -> tuple:
        """All tensors."""
        return self.cache.parts(), self.rotary


@dataclass(frozen=True)
class _Begun:
    memory: DepthMemory
    hidden: Tensor
    """[B, D]."""


def _digits(config: DepthSettings, arrangement: CodebookPattern) -> list[tuple[int, ...]] | None:
    """Vocabulary sizes of the sub-tokens of each codebook; None: its ids are the sub-tokens."""
    if not isinstance(config, FactorHeadConfig):
        return None
    return equal_digits(config.sizes, arrangement, "lm.head.sizes")


def _make_projection(kind: str, width: int, own: int) -> nn.Module:
    """From the backbone's width to the depth transformer's."""
    if kind == "none":
        return nn.Identity()
    layer = Linear(width, own, bias=kind == "affine")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _check(config: DepthSettings, backbone: int, width: int, kv_heads: int, head_width: int, J: int) -> None:
    """Raise ConfigError unless a depth transformer of J sub-tokens and these widths can be made."""
    if config.head_dim is None and width % config.heads:
        raise ConfigError(f"lm.head: width {width} is not a multiple of heads {config.heads}")
    if config.positions.kind == "rope" and head_width % PAIRS["time"]:
        raise ConfigError(
            f"lm.head: head width is {head_width}, but positions kind 'rope' needs a multiple of {PAIRS['time']}; set "
            "head_dim"
        )
    if config.projection == "none" and width != backbone:
        raise ConfigError(
            f"lm.head: projection 'none' needs width {backbone}, the backbone's, found {width}; leave width or "
            "projection out"
        )
    if config.heads % kv_heads:
        raise ConfigError(f"lm.head: heads {config.heads} is not a multiple of kv_heads {kv_heads}")
    if J == 1 and config.first == "backbone":
        raise ConfigError(
            "lm.head: first 'backbone' needs two codebooks or more, one of them for the depth transformer"
        )
