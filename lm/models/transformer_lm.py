"""TransformerLM: the parts that all transformer models share, and how whole sequences pass through them.

    codes ──► input ──┐
                      ├──► transformer ──► head ──► logits
    conditions ───────┘

The kinds (causal.py, masked.py, next_scale.py) differ in what they read and predict, in the attention mask, and in
how they decode; `base.py` is the interface of all kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...configs.schema import ConfigError
from ...tokenize.spec import TokenSpec
from ..attention.masks import causal_mask
from ..attention.registry import choose_backend
from ..conditioning.base import ConditionContext
from ..conditioning.padding import align_right
from ..conditioning.registry import Conditioner, FusedConditions
from ..config import LMConfig
from ..heads.base import HeadContext
from ..heads.multi_token_prediction import Ahead
from ..heads.registry import HEADS
from ..layers.attention_layers import Memory
from ..layers.input_embedding import INPUTS
from ..layers.position_embedding import Positions
from ..layers.transformer import Transformer, initialize_
from ..ops.loss import LossReport, report_loss, with_part
from ..ops.row_rng import Dropout
from ..patterns.pattern import CodebookPattern
from ..patterns.presets import PresetConfig
from .base import LanguageModel


@dataclass(frozen=True)
class LMOutput:
    """Logits of whole sequences, indexed by step."""

    logits: Tensor
    """[B, J, S, V'], one row per sub-token of the head: J = K unless the head splits codes. -inf for values outside a
    sub-token's range; float32, or the autocast dtype."""
    targets: Tensor
    """[B, K, S] long, the ids in pattern order."""
    mask: Tensor
    """[B, K, S] bool, True where the loss counts."""
    arrangement: CodebookPattern
    num_frames: int
    lengths: Tensor | None

    def undo(self) -> Tensor:
        """Logits by frame, [B, J, T, V']."""
        K, V = self.targets.shape[1], self.logits.shape[3]
        of_codebooks = self.logits.unflatten(1, (K, -1)).transpose(2, 3).flatten(3)
        frames = self.arrangement.undo(of_codebooks, self.num_frames, self.lengths)
        return frames.unflatten(3, (-1, V)).transpose(2, 3).flatten(1, 2)


AnyLM = TypeVar("AnyLM", bound="TransformerLM")


class TransformerLM(LanguageModel):
    """A transformer over one tokenizer's codes; each kind adds `forward` and `loss`.

    Args:
        config: the model config, with the condition sizes filled in.
        spec: the tokenizer's TokenSpec.
        code_vectors: [K, V, width] float, the tokenizer's `vectors()`; required if config.needs_code_vectors.
    Raises:
        ConfigError: the config does not fit the tokenizer. ImportError, ValueError: the attention backend cannot be
            used.
    """

    def __init__(self, config: LMConfig, spec: TokenSpec, code_vectors: Tensor | None = None):
        super().__init__()
        config = config.explicit(spec.num_codebooks)
        self.config = config
        """The config with a preset codebook pattern expanded."""
        self.spec = spec
        assert not isinstance(config.arrangement, PresetConfig)
        self.arrangement = CodebookPattern(
            config.arrangement, spec.cardinalities, config.variable_length, config.specials
        )
        first = 0 if config.start == "token" else -1
        self.positions = Positions(config.rope, self.arrangement, spec.geometry, config.width, config.head_width, first)
        self.input = INPUTS[config.input.kind](config.input, self.arrangement, config.width, code_vectors)
        self.fused: Any = None
        """Fast path of the input embedding in decode steps: a `FastInput` (lm/quantization/cpu_fast_decode.py)."""
        context = ConditionContext(
            config.width,
            config.heads,
            getattr(config.rope, "base", 10000.0),
            spec.cardinalities,
            self.input,
            code_vectors,
        )
        self.conditions = Conditioner(config.conditions, context)
        self.dropout = Dropout(config.dropout)
        self.transformer = Transformer(config.transformer, choose_backend(config.attention))
        self.head = HEADS[config.head.kind](
            config.head, HeadContext(config.width, self.arrangement, code_vectors, self.input)
        )
        self.loss_weights = _check_weights(config.loss_weights, spec.num_codebooks)
        self.ahead = Ahead(config.ahead, config.width) if config.ahead is not None else None
        initialize_(self, config.width, config.layers)
        self.head.initialize_()

    def start_ids(self, num_rows: int, device: torch.device | str | None = None) -> Tensor:
        """[B, K] long: the input of the first `step`."""
        device = device if device is not None else self.device
        return torch.tensor(self.arrangement.start_ids, dtype=torch.long, device=device).expand(num_rows, -1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(self.parameters()).dtype

    def report(self, terms: Tensor, mask: Tensor, advances: tuple[Tensor, Tensor] | None = None) -> LossReport:
        """The report of per-token losses [B, K, S] where mask [B, K, S] is True.

        Args:
            advances: losses [*] of the pointer's advances and their mask [*], if the model has an aligned text.
        """
        report = report_loss(terms, mask, self.loss_weights)
        aligned = self.conditions.aligned
        if aligned is None:
            return report
        assert advances is not None
        return with_part(report, *advances, aligned.loss_weight)

    def count_terms(self, num_frames: int) -> Tensor:
        """Number of loss terms per part in an example of num_frames frames, long."""
        codes = torch.zeros(1, self.num_codebooks, num_frames, dtype=torch.long)
        mask = self.arrangement.arrange(codes).mask
        terms = torch.zeros(mask.shape)
        if self.conditions.aligned is None:
            return self.report(terms, mask).count
        return self.report(terms, mask, (torch.zeros(num_frames), torch.ones(num_frames, dtype=torch.bool))).count

    def transform(self, x: Tensor, joined: FusedConditions, num_frames: int | Tensor, side: int = 1) -> Tensor:
        """Run the blocks over whole sequences x [B, S, D] after the conditions' prefix."""
        steps = torch.arange(x.shape[1], device=x.device)
        P = 0
        if joined.prefix is not None:
            P = joined.prefix.shape[1]
            x = torch.cat([joined.prefix.to(x.dtype), x], dim=1)
        x = self.positions.add(x, steps, P, joined.prefix_mask)
        table = self.positions.table(steps, num_frames, P, joined.prefix_mask, side)
        memory = self.cross_attention_memory(joined)
        mask = self.attention_mask(P, len(steps), joined.prefix_mask, x.device)
        x = self.dropout(x)
        return self.transformer(x, table, mask, mask is None, memory, condition=joined.adaptive)[:, P:]

    def add_conditions(self, x: Tensor, summed: Tensor | None, first: Tensor | None) -> Tensor:
        """x [B, S, D] with its first step replaced and the summed conditions added."""
        if first is not None:
            x = torch.cat([first.to(x.dtype), x[:, 1:]], dim=1)
        return x if summed is None else x + summed

    def split_first(self, joined: FusedConditions) -> tuple[FusedConditions, Tensor | None]:
        """The conditions without the prefix token that replaces the start token, a row's last, and that token
        [B, 1, D]."""
        if self.config.start == "token" or joined.prefix is None:
            return joined, None
        prefix, mask, P = joined.prefix, joined.prefix_mask, joined.prefix.shape[1] - 1
        if mask is not None:
            prefix, mask = align_right(prefix, mask)
        if not P:
            return replace(joined, prefix=None, prefix_mask=None), prefix
        return replace(joined, prefix=prefix[:, :P], prefix_mask=None if mask is None else mask[:, :P]), prefix[:, P:]

    def cross_attention_memory(self, joined: FusedConditions) -> Memory | None:
        """Keys and values for cross-attention, in the dtype of the weights: precomputed vectors may have another."""
        if joined.memory is None:
            return None
        return self.transformer.project_memory(joined.memory.to(self.dtype), joined.memory_mask)

    def attention_mask(self, P: int, S: int, prefix_mask: Tensor | None, device: torch.device) -> Tensor | None:
        """Attention mask of P prefix tokens and S steps, bool [B or 1, 1, P + S, P + S]; None: causal."""
        window = self.config.window
        if prefix_mask is None and (window is None or S <= window):
            return None
        positions = torch.arange(P + S, device=device)
        return causal_mask(positions, positions, P, prefix_mask, window)

    def embed_step(self, ids: Tensor) -> Tensor:
        """The input embedding [B, S, D] of the ids [B, K, S] that a decode step reads."""
        found = None if self.fused is None else self.fused(ids)
        return self.input(ids) if found is None else found

    def refresh(self) -> None:
        """Update everything derived from the weights of backbone and input; called before a generation."""
        self.transformer.refresh()
        if self.fused is not None:
            self.fused.refresh(self.input)

    def train(self: AnyLM, mode: bool = True) -> AnyLM:
        """Like `nn.Module.train`; switching to training mode drops derived copies of the weights."""
        if mode:
            self.fused = None
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.num_parameters / 1e6:.2f} M parameters, tokenizer '{self.spec.name}'"


def _check_weights(weights: tuple[float, ...] | None, K: int) -> Tensor | None:
    if weights is None:
        return None
    if len(weights) != K:
        raise ConfigError(f"lm.loss_weights has {len(weights)} entries, but there are {K} codebooks; give {K}")
    return torch.tensor(weights, device="cpu")
