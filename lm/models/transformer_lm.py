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
from torch import Tensor, nn

from ...configs.schema import ConfigError
from ...tokenize.spec import ImageGeometry, TokenSpec
from ..attention.masks import causal_mask
from ..attention.registry import choose_backend
from ..conditioning.base import ConditionContext
from ..conditioning.padding import align_right, drop_rows
from ..conditioning.registry import ConditionBatch, Conditioner, FusedConditions
from ..config import LMConfig
from ..heads.base import HeadContext
from ..heads.multi_token_prediction import Ahead
from ..heads.registry import HEADS
from ..heads.text_stream import StreamHead
from ..layers.attention_layers import Memory
from ..layers.input_embedding import INPUTS
from ..layers.position_embedding import Positions
from ..layers.stream_input import StreamInput
from ..layers.transformer import Transformer, initialize_
from ..ops.loss import LossReport, report_loss, with_part
from ..ops.row_rng import Dropout
from ..patterns.pattern import Arranged, CodebookPattern
from ..patterns.presets import AutoArrangementConfig, PresetConfig
from ..patterns.text_stream import ExampleShape, TextStream
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
    codebooks: tuple[int, ...]
    """[J]: the codebook of each sub-token."""

    def undo(self) -> Tensor:
        """Logits by frame, [B, J, T, V']."""
        return self.arrangement.undo(self.logits, self.num_frames, self.lengths, self.codebooks)


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
        """The config with codebook pattern and head written out."""
        self.spec = spec
        assert not isinstance(config.arrangement, PresetConfig | AutoArrangementConfig)
        self.text_stream = _make_stream(config, spec)
        sizes = spec.cardinalities if self.text_stream is None else self.text_stream.cardinalities
        self.arrangement = CodebookPattern(config.arrangement, sizes, config.variable_length, config.specials)
        first = 0 if config.start == "token" else -1
        self.positions = Positions(config.rope, self.arrangement, spec.geometry, config.width, config.head_width, first)
        self.input = self._make_input(code_vectors)
        self.fused: Any = None
        """Fast path of the input embedding in decode steps: a `FastInput` (lm/quantization/cpu_fast_decode.py)."""
        of_codes = self.input.audio if isinstance(self.input, StreamInput) else self.input
        context = ConditionContext(
            config.width,
            config.heads,
            getattr(config.rope, "base", 10000.0),
            spec.cardinalities,
            of_codes,
            code_vectors,
        )
        self.conditions = Conditioner(config.conditions, context)
        self.dropout = Dropout(config.dropout)
        self.transformer = Transformer(config.transformer, choose_backend(config.attention))
        self.head = self._make_head(code_vectors, of_codes)
        self.loss_weights = _check_weights(config.loss_weights, self.num_codebooks)
        self.ahead = Ahead(config.ahead, config.width) if config.ahead is not None else None
        initialize_(self, config.width, config.layers)
        self.head.initialize_()

    def _make_input(self, code_vectors: Tensor | None) -> nn.Module:
        config, stream = self.config, self.text_stream
        if stream is None:
            return INPUTS[config.input.kind](config.input, self.arrangement, config.width, code_vectors)
        return StreamInput(config.input, stream, self.arrangement.input_sizes[0], config.width, code_vectors)

    def _make_head(self, code_vectors: Tensor | None, of_codes: nn.Module) -> Any:
        """`of_codes` is the input embedding of the codes."""
        config, stream = self.config, self.text_stream
        codes = self.arrangement if stream is None else stream.audio
        head = HEADS[config.head.kind](config.head, HeadContext(config.width, codes, code_vectors, of_codes))
        return head if stream is None else StreamHead(stream, self.arrangement, config.width, head)

    def start_ids(self, num_rows: int, device: torch.device | str | None = None) -> Tensor:
        """[B, K] long: the input of the first `step`."""
        device, stream = device if device is not None else self.device, self.text_stream
        ids = self.arrangement.start_ids
        if stream is not None and stream.config.begin is not None:
            ids = stream.config.begin, *stream.absent_ids[1:]
        return torch.tensor(ids, dtype=torch.long, device=device).expand(num_rows, -1)

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

    def count_terms(self, shape: int | ExampleShape) -> Tensor:
        """Number of loss terms per part in an example, long. `shape`: its number of frames, or with a text stream what
        it consists of."""
        if isinstance(shape, ExampleShape):
            assert self.text_stream is not None
            return self.text_stream.count_terms(shape)
        num_frames = shape
        codes = torch.zeros(1, self.num_codebooks, num_frames, dtype=torch.long)
        mask = self.arrangement.arrange(codes).mask
        terms = torch.zeros(mask.shape)
        if self.conditions.aligned is None:
            return self.report(terms, mask).count
        return self.report(terms, mask, (torch.zeros(num_frames), torch.ones(num_frames, dtype=torch.bool))).count

    def arranged(self, codes: Tensor, lengths: Tensor | None, batch: ConditionBatch) -> Arranged:
        """The codes [B, K, T] in pattern order, with the mask of the loss; errors as in `CodebookPattern.arrange`."""
        stream, given = self.text_stream, batch.given
        if stream is None:
            if given is not None:
                raise ValueError("given frames are for a model with a text_stream; leave `given` out")
            return self.arrangement.arrange(codes, lengths)
        arranged = self.arrangement.arrange(codes, lengths, given if stream.config.loss == "answer" else None)
        stream.check(codes, lengths)
        if not stream.has_end_frame:
            return arranged
        silent = torch.zeros_like(arranged.mask[:, :1])
        return replace(arranged, mask=torch.cat([silent, arranged.mask[:, 1:]], dim=1))

    def read_ids(self, ids: Tensor, given: Tensor | None) -> Tensor:
        """The ids [B, K, S] that whole sequences read: `start`, then those of the steps but the last; in training mode
        without the given text of random rows.

        Args:
            ids: [B, K, S] of the steps.
            given: [B] given positions, of a model with a text stream.
        """
        start = self.start_ids(len(ids), ids.device).unsqueeze(-1)
        read = torch.cat([start, ids[:, :, :-1]], dim=2)
        stream = self.text_stream
        if stream is None or given is None or not self.training or not stream.config.dropout:
            return read
        dropped = given - drop_rows(given, stream.config.dropout)
        frames = torch.arange(-1, read.shape[2] - 1, device=ids.device) - self.arrangement.layout.offsets[0]
        return torch.where((frames < dropped[:, None])[:, None], stream.without_text(read), read)

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


def _make_stream(config: LMConfig, spec: TokenSpec) -> TextStream | None:
    if config.text_stream is None:
        return None
    if isinstance(spec.geometry, ImageGeometry):
        raise ConfigError(f"lm.text_stream is for audio, but '{spec.name}' makes images; use the condition text")
    return TextStream(config.text_stream, config.specials, spec.cardinalities)


def _check_weights(weights: tuple[float, ...] | None, K: int) -> Tensor | None:
    if weights is None:
        return None
    if len(weights) != K:
        raise ConfigError(f"lm.loss_weights has {len(weights)} entries, but there are {K} codebooks; give {K}")
    return torch.tensor(weights, device="cpu")
