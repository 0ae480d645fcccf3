"""NextScaleLM: a transformer that predicts all cells of a scale at once from the earlier scales.

For a tokenizer with scales (1 x 1, 2 x 2, 4 x 4) and a label as prefix; f_s is the sum of the scales before s (what the
tokenizer would decode), resized to scale s (lm/models/scale_sums.py):

    scale         -       0       1                2
    input         L       start   f_1 f_1 f_1 f_1  f_2 f_2 ... f_2      + a learned scale embedding
    predicts              a       b   b   b   b    c   c   ... c
    attends to    L       L       L, scales 0, 1   L, scales 0, 1, 2    its own scale too: those inputs hold
                                                                        codes of earlier scales only

Positions are rows and columns on the last grid, so a coarse cell lies at the center of the fine cells that it covers.
`forward` and `loss` process whole images; `begin` and `step_scale` decode one scale at a time with a KV cache.
Source: VAR, arXiv:2404.02905; positions shared by the scales as in Infinity, arXiv:2412.04431.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from ...configs.schema import ConfigError
from ...tokenize.quantizers.combinators.multi_scale import ScalesQuantizer
from ...tokenize.quantizers.registry import Quantizer
from ...tokenize.spec import ImageGeometry, TokenSpec
from ..attention.masks import block_mask
from ..conditioning.batch import ConditionBatch
from ..config import LMConfig
from ..kv_cache.base import Cache, CacheShape
from ..kv_cache.block import BlockCache
from ..kv_cache.config import CacheChoice
from ..kv_cache.registry import read_cache
from ..layers.adaptive_norm import AdaptiveName
from ..layers.config import TransformerConfig
from ..layers.embedding import Table
from ..layers.input_embedding import EmbeddingInputConfig
from ..layers.transformer import initialize_
from ..ops.linear import Linear, with_zero_bias
from ..ops.loss import LossParts, LossReport
from ..ops.rotary import GridRopeConfig, RopeConfig
from ..patterns.pattern import Arranged, ParallelConfig, SpecialsConfig
from .base import DecodePlan
from .decoding_state import DecodingState
from .prefill import prefill
from .scale_sums import ScaleSums
from .transformer_lm import LMOutput, TransformerLM


class NextScaleConfig(LMConfig):
    """Config of a next-scale image model."""

    kind: Literal["next_scale"] = "next_scale"  # pyright: ignore[reportIncompatibleVariableOverride]
    rope: RopeConfig = GridRopeConfig()
    """Position encoding; kind grid counts in cells of the last scale."""
    sums: Literal["normalized", "plain"] = "normalized"
    """How the sum of the earlier scales is read. normalized: divided by the RMS of the code vectors. plain: as it is
    (VAR)."""
    adaptive: AdaptiveName = "own"
    """Adaptive norms, for conditions with join adaptive. own: a layer of each block computes its scales, shifts and
    gates. shared: one layer for all blocks, to which each adds vectors of its own (VAR at 512 pixels)."""

    @model_validator(mode="after")
    def _check_next_scale(self) -> NextScaleConfig:
        if self.variable_length or self.arrangement != ParallelConfig() or self.specials != SpecialsConfig():
            raise ValueError(
                "a next-scale model predicts a fixed number of cells in place; leave variable_length, "
                "arrangement and specials out"
            )
        if self.window is not None or self.ahead is not None or self.loss_weights is not None:
            raise ValueError(
                "a next-scale model attends to all scales of one codebook; leave window, ahead, loss_weights out"
            )
        if self.input != EmbeddingInputConfig():
            raise ValueError("a next-scale model reads the sum of the previous scales; leave input out")
        if any(condition.kind == "codes" and condition.input is None for condition in self.conditions):
            raise ValueError(
                "a next-scale model has no code embedding to share with a condition; give the "
                "condition 'codes' its own input, for instance input: {kind: embedding}"
            )
        if self.transformer.adaptive is not None and self.norm != "layer":
            raise ValueError(
                f"condition join 'adaptive' modulates norm 'layer', found norm '{self.norm}'; set norm: layer"
            )
        if self.head.kind not in ("parallel", "bits"):
            raise ValueError(
                f"a next-scale model predicts all cells of a scale at once, head '{self.head.kind}' does not; use "
                "parallel or bits"
            )
        return self

    @property
    def transformer(self) -> TransformerConfig:
        """Config of the backbone."""
        adaptive = any(condition.join == "adaptive" for condition in self.conditions)
        return replace(super().transformer, adaptive=self.adaptive if adaptive else None)


@dataclass
class ScaleState:
    """A generation in progress; `NextScaleLM.step_scale` changes it in place."""

    steps: DecodingState
    """KV cache and conditions."""
    total: Tensor
    """[B, M, C] sum of the scales so far."""
    scale: int = 0
    """The scale to predict next."""


class NextScaleLM(TransformerLM):
    """A next-scale model of one tokenizer; its steps are scales.

    Args:
        config, spec: as for TransformerLM.
        quantizer: the tokenizer's quantizer.
    Raises:
        ConfigError: the tokenizer has no scales.
    """

    config: NextScaleConfig
    decode_plan = DecodePlan("next_scale", refused=("draft",), why="a next-scale model generates whole scales")

    def __init__(self, config: NextScaleConfig, spec: TokenSpec, quantizer: Quantizer | None = None):
        if not isinstance(spec.geometry, ImageGeometry) or not spec.geometry.scales:
            raise ConfigError(
                f"lm kind 'next_scale' predicts the scales of an image, but tokenizer '{spec.name}' has none; use a "
                "tokenizer whose quantizer is of kind scales"
            )
        if not isinstance(quantizer, ScalesQuantizer):
            raise ConfigError(
                "lm kind 'next_scale' needs the tokenizer's quantizer; pass quantizer=tokenizer.quantizer"
            )
        super().__init__(config, spec)
        self.positions.first = 0  # a cell is at the position where it is predicted, whatever the start token
        self.input = ScaleInput(
            quantizer, config.width, config.start == "token", normalized=config.sums == "normalized", bias=config.bias
        )
        initialize_(self.input, config.width, config.layers)
        self.counts = self.input.sums.counts
        """Cells of each scale."""

    @property
    def num_scales(self) -> int:
        """Number of scales of an image."""
        return len(self.counts)

    @property
    def loss_parts(self) -> LossParts:
        """The scales, weighted so that all cells count equally."""
        return LossParts("scale", tuple(count / sum(self.counts) for count in self.counts))

    def report(self, terms: Tensor, mask: Tensor) -> LossReport:
        """Means per scale of per-token losses [B, 1, T]; the loss is the mean over all cells."""
        means = torch.stack([part.mean() for part in terms.split(self.counts, dim=2)])
        cells = torch.tensor(self.counts, device=terms.device)
        weights = cells / cells.sum()
        return LossReport((weights * means).sum(), means, cells * terms.shape[0], weights)

    # Whole images

    def forward(
        self, codes: Tensor, lengths: Tensor | None = None, conditions: ConditionBatch | None = None
    ) -> LMOutput:
        """Compute the logits of every cell given the codes of earlier scales; arguments and errors as for
        `TokenLM.forward`."""
        arranged, hidden = self.hidden_states(codes, lengths, conditions)
        logits = self.head(hidden, arranged.ids).transpose(1, 2)
        codebooks = self.head.sub_tokens.codebooks
        return LMOutput(logits, arranged.ids, arranged.mask, self.arrangement, codes.shape[2], lengths, codebooks)

    def loss(
        self,
        codes: Tensor,
        lengths: Tensor | None = None,
        conditions: ConditionBatch | None = None,
        label_smoothing: float = 0.0,
        side: int = 1,
    ) -> LossReport:
        """Cross-entropy of each scale and its mean over all cells; arguments and errors as for `TokenLM.loss`."""
        assert side == 1, "scales have no patches (TrainConfig checks it)"
        arranged, hidden = self.hidden_states(codes, lengths, conditions)
        return self.report(self.head.losses(hidden, arranged.ids, arranged.mask, label_smoothing), arranged.mask)

    def hidden_states(
        self, codes: Tensor, lengths: Tensor | None, conditions: ConditionBatch | None
    ) -> tuple[Arranged, Tensor]:
        """The codes in pattern order, and the hidden state [B, T, D] that predicts each cell."""
        arranged = self.arrangement.arrange(codes, lengths)
        if codes.shape[2] != sum(self.counts) or not bool(arranged.mask.all()):
            raise ValueError(
                f"codes are {list(codes.shape)}, but an image of '{self.spec.name}' has {sum(self.counts)} frames; "
                "pass whole images"
            )
        batch = conditions or ConditionBatch()
        self.conditions.check(batch, codes.shape[0])
        joined, first = self.split_first(self.conditions(batch))
        total = self.input.sums.start(codes.shape[0])
        inputs = [self.input.first(first, joined.adaptive, total)]
        for number, own in enumerate(codes[:, 0].split(self.counts, dim=1)[:-1]):
            total = self.input.sums.add(total, number, own)
            inputs.append(self.input.at(total, number + 1))
        x = self.add_conditions(torch.cat(inputs, dim=1), joined.summed, None)
        return arranged, self.transform(x, joined, codes.shape[2])

    def attention_mask(self, P: int, S: int, prefix_mask: Tensor | None, device: torch.device) -> Tensor:
        return block_mask((1,) * P + self.counts, prefix_mask).to(device)

    # Decoding, one scale at a time

    @torch.no_grad()
    def begin(
        self,
        conditions: ConditionBatch | None = None,
        num_rows: int | None = None,
        cache: CacheChoice | None = None,
    ) -> ScaleState:
        """Begin a generation; arguments and errors as for `TokenLM.start`."""
        state = prefill(self, _make_cache, conditions, sum(self.counts), num_rows, cache=cache)
        return ScaleState(state, self.input.sums.start(state.num_rows))

    @torch.no_grad()
    def step_scale(self, state: ScaleState, codes: Tensor | None = None) -> Tensor:
        """Read the codes of the previous scale and return the logits of all cells of this one.

        Args:
            state: from `begin`; changed in place.
            codes: [B, n] long, chosen for the previous scale; None for the first.
        Returns:
            logits [B, J, n, V'] of scale state.scale (before the call).
        """
        number, steps = state.scale, state.steps
        if codes is not None:
            state.total = self.input.sums.add(state.total, number - 1, codes)
        first = sum(self.counts[:number])
        cells = torch.arange(first, first + self.counts[number], device=self.device)
        if number:
            x = self.input.at(state.total, number)
        else:
            x = self.input.first(steps.first, steps.adaptive, state.total)
        x = self.positions.add(self.add_conditions(x, steps.summed, None), cells, 0, None)
        table = self.positions.table(cells, steps.num_frames, 0, None)
        hidden = self.transformer(x, table, memory=steps.memory, cache=steps.cache, condition=steps.adaptive)
        steps.step += len(cells)
        state.scale += 1
        return self.head(hidden, None).transpose(1, 2)

    @staticmethod
    def check_cache(choice: CacheChoice | None) -> None:
        """Raise ValueError for any kind of cache but the static one."""
        kind = read_cache(choice).kind
        if kind != "static":
            raise ValueError(
                f"cache kind '{kind}' needs sequential steps, a next-scale model has none; leave cache out"
            )


def _make_cache(choice: CacheChoice | None, shape: CacheShape) -> Cache:
    NextScaleLM.check_cache(choice)
    return BlockCache(shape)


class ScaleInput(nn.Module):
    """Input of a next-scale model: the sum of the earlier scales through a linear layer, plus a scale embedding."""

    scale: Tensor
    """1 / RMS of the code vectors, or 1."""

    def __init__(
        self, quantizer: ScalesQuantizer, width: int, has_start: bool, normalized: bool = True, bias: bool = False
    ):
        super().__init__()
        self.sums = ScaleSums(quantizer)
        scale = 1 / self.sums.vectors.square().mean().sqrt().clamp(min=1e-8)
        self.register_buffer("scale", scale if normalized else torch.ones_like(scale), persistent=False)
        self.linear = with_zero_bias(Linear(self.sums.dim, width, bias=bias))
        self.levels = Table(len(self.sums.counts), width)
        self.start = nn.Parameter(torch.empty(1, width)) if has_start else None
        """Learned start token of the first scale; None if a condition takes its place."""

    def first(self, first: Tensor | None, added: Tensor | None, total: Tensor) -> Tensor:
        """Input of the first scale [B, n, D], the same for all cells: the given token [B, 1, D], or the learned one,
        plus what a condition adds [B, D]."""
        token = self.start if first is None else first
        assert token is not None
        token = token if added is None else token + added.unsqueeze(1)
        vector = token + self.levels.weight[0]
        return vector.expand(total.shape[0], self.sums.counts[0], -1)

    def at(self, total: Tensor, number: int) -> Tensor:
        """Input of a later scale [B, n, D] from the sum [B, M, C] of the earlier scales."""
        seen = self.sums.at(total, number) * self.scale
        return self.linear(seen.to(self.linear.weight.dtype)) + self.levels.weight[number]
