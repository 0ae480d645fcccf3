"""TokenLM: a decoder-only transformer over multi-codebook tokens interleaved by a codebook pattern.

One input sequence (label and text as prefix, delays [0, 1]; s = start):

    position   -4 -3 -2 -1   0  1  2  3
    input       L  t0 t1 t2  s  a0 a1 a2        `start` is at position 0 and the ids of step s are at s + 1,
                             s  s  b0 b1        so position s predicts the ids of step s:
    predicts                 a0 a1 a2 .
                             .  b0 b1 b2

`forward` and `loss` process whole sequences; `start` and `step` decode one step at a time with a KV cache. Both run
the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...configs.schema import ConfigError
from ...tokenize.spec import ImageGeometry, TokenSpec
from ..attention.masks import causal_mask
from ..attention.registry import TAKE_COUNTS, choose_backend
from ..conditioning.base import ConditionContext
from ..conditioning.registry import ConditionBatch, Conditioner, FusedConditions
from ..config import LMConfig
from ..heads.multi_token_prediction import Ahead
from ..heads.registry import HEADS
from ..kv_cache.base import Cache, CacheShape
from ..kv_cache.config import CacheChoice
from ..kv_cache.registry import make_cache
from ..layers.input_embedding import INPUTS
from ..layers.position_embedding import Positions
from ..layers.transformer import Memory, Transformer, initialise_
from ..ops.loss import LossParts, LossReport, report_loss
from ..ops.row_rng import Dropout
from ..patterns.pattern import Arranged, CodebookPattern
from ..patterns.presets import PresetConfig
from .decoding_state import DecodingState
from .next_patch import Patches
from .shape_buckets import padded


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


class TokenLM(nn.Module):
    """The language model over one tokenizer's codes.

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
        host = ConditionContext(
            config.width, config.heads, config.rope.base, spec.cardinalities, self.input, code_vectors
        )
        self.conditions = Conditioner(config.conditions, host)
        self.dropout = Dropout(config.dropout)
        self.transformer = Transformer(
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.num_kv_heads,
            ffn=config.num_ffn,
            qk_norm=config.qk_norm,
            dropout=config.dropout,
            cross=any(condition.join == "cross" for condition in config.conditions),
            attend=choose_backend(config.attention),
            norm=config.norm,
            norm_eps=config.norm_eps,
            feed_forward=config.feed_forward,
        )
        self.head = HEADS[config.head.kind](config.head, config.width, self.arrangement, code_vectors)
        self.loss_weights = _check_weights(config.loss_weights, spec.num_codebooks)
        self.ahead = Ahead(config.ahead, config.width) if config.ahead is not None else None
        initialise_(self, config.width, config.layers)
        self.head.initialise_()

    @property
    def num_codebooks(self) -> int:
        """K."""
        return self.arrangement.num_codebooks

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        packed = sum(getattr(module, "num_packed", 0) for module in self.modules())
        return packed + sum(parameter.numel() for parameter in self.parameters())

    def check_conditions(self, batch: ConditionBatch, num_rows: int | None = None) -> None:
        """Raise ValueError unless the batch has exactly the model's conditions, in range, for num_rows rows (None: any
        number). Ids are range-checked on the CPU only: on other devices the check would synchronize."""
        self.conditions.check(batch, num_rows)

    # Whole sequences

    def forward(
        self, codes: Tensor, lengths: Tensor | None = None, conditions: ConditionBatch | None = None
    ) -> LMOutput:
        """Compute the logits of every id given the ids of earlier steps.

        Args:
            codes: [B, K, T] long.
            lengths: [B] long, frames of each row; None: all T. A row's logits depend neither on codes beyond its length
                nor on other rows.
            conditions: for B rows; None only if the model has no conditions.
        Raises:
            ValueError: codes, lengths or conditions do not fit the model; the message names which.
        """
        arranged, hidden = self._read_all(codes, lengths, conditions)
        logits = self.head(hidden, arranged.ids).transpose(1, 2)
        return LMOutput(logits, arranged.ids, arranged.mask, self.arrangement, codes.shape[2], lengths)

    def loss(
        self,
        codes: Tensor,
        lengths: Tensor | None = None,
        conditions: ConditionBatch | None = None,
        label_smoothing: float = 0.0,
        side: int = 1,
    ) -> LossReport:
        """Masked cross-entropy per codebook and its mean; in training mode also the multi-token prediction loss.

        Args:
            codes, lengths, conditions: as for `forward`, with the same errors.
            side: above 1, squares of side x side frames are predicted at once (next_patch.py).
        """
        arranged, hidden = self._read_all(codes, lengths, conditions, side)
        terms = self.head.terms(hidden, arranged.ids, arranged.mask, label_smoothing)
        report = self.report(terms, arranged.mask)
        if self.ahead is None or not self.training:
            return report
        guesses = self.ahead.terms(self.head, hidden, arranged.ids, arranged.mask, label_smoothing)
        return replace(report, guesses=guesses.sum(dim=(0, 2)) / report.count.clamp(min=1))

    @property
    def loss_parts(self) -> LossParts:
        """The parts for which the loss is reported."""
        return LossParts("codebook", (1 / self.num_codebooks,) * self.num_codebooks)

    def report(self, terms: Tensor, mask: Tensor) -> LossReport:
        """The report of per-token losses [B, K, S] where mask [B, K, S] is True."""
        return report_loss(terms, mask, self.loss_weights)

    def count_terms(self, num_frames: int) -> Tensor:
        """Number of loss terms per part in an example of num_frames frames, long."""
        codes = torch.zeros(1, self.num_codebooks, num_frames, dtype=torch.long)
        mask = self.arrangement.arrange(codes).mask
        return self.report(torch.zeros(mask.shape), mask).count

    # Decoding, one step at a time

    def start_ids(self, num_rows: int, device: torch.device | str | None = None) -> Tensor:
        """[B, K] long: the input of the first `step`."""
        device = device if device is not None else self.device
        return torch.tensor(self.arrangement.start_ids, dtype=torch.long, device=device).expand(num_rows, -1)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def start(
        self,
        conditions: ConditionBatch | None = None,
        capacity: int = 0,
        num_rows: int | None = None,
        num_frames: int | Tensor | None = None,
        cache: CacheChoice | None = None,
        steady: bool = False,
    ) -> DecodingState:
        """Begin a generation: allocate the KV cache and prefill the conditions.

        Args:
            conditions: for B rows; None only if the model has no conditions.
            capacity: maximum number of steps, usually `arrangement.num_steps(frames)`.
            num_rows: B, required if the model has no conditions (otherwise it must agree with them).
            num_frames: frames of the sequence if known; required by coarse_first and by grouped with grid positions
                (taken from an image tokenizer).
            cache: the KV cache: the name of a kind or its config (`lm/kv_cache/registry.py`); None: lossless.
            steady: pad the conditions to bucketed lengths (shape_buckets.py), so that the steps of many generations
                share shapes.
        Raises:
            ValueError: the conditions do not fit the model, the number of rows is unknown, capacity is below 1, the
                model is in training mode with dropout, or the cache is unknown or does not fit.
        """
        if capacity < 1:
            raise ValueError(
                f"capacity is {capacity} steps; at least 1 is needed, for T frames arrangement.num_steps(T)"
            )
        if self.training and self.config.dropout:
            raise ValueError("the model is in training mode, its dropout would change every step; call lm.eval() first")
        batch = (conditions or ConditionBatch()).to(self.device)
        self.conditions.check(batch, num_rows)
        B = batch.num_rows if batch.num_rows is not None else num_rows
        if B is None:
            raise ValueError("the model has no conditions, so the number of rows must be said; pass num_rows")
        if num_frames is None and isinstance(self.spec.geometry, ImageGeometry):
            num_frames = self.spec.geometry.num_frames
        self.transformer.refresh()
        joined, first = self._take_first(self._conditions_as_in_eval(batch))
        if steady and num_frames is not None:
            num_frames = torch.tensor(num_frames, device=self.device)
        if steady:
            joined = padded(joined, all(c.kind == "label" for c in self.config.conditions if c.join == "prefix"))
        P = 0 if joined.prefix is None else joined.prefix.shape[1]
        memory = self._remember(joined)
        config = self.config
        shape = CacheShape(
            layers=config.layers,
            num_rows=B,
            kv_heads=config.num_kv_heads,
            head_width=config.head_width,
            num_steps=capacity,
            dtype=self._compute_dtype(),
            device=self.device,
            prefix_length=P,
            prefix_mask=joined.prefix_mask,
            window=config.window,
            counted=config.attention in TAKE_COUNTS,
        )
        head = self.head.start(B, shape.dtype, self.device)
        state = DecodingState(
            self._make_cache(cache, shape),
            shape,
            memory,
            joined.summed,
            first,
            joined.prefix_mask,
            P,
            capacity,
            num_frames,
            head,
        )
        if joined.prefix is not None:
            none = torch.arange(0, device=self.device)
            prefix = joined.prefix.to(self.dtype)  # precomputed vectors may have another dtype
            x = self.positions.add(prefix, none, P, joined.prefix_mask)
            table = self.positions.table(none, num_frames, P, joined.prefix_mask)
            self.transformer(x, table, memory=memory, cache=state.cache)
        return state

    @torch.no_grad()
    def read(self, state: DecodingState, ids: Tensor) -> Tensor:
        """Read the ids of the previous step and return the hidden state that predicts this one.

        Args:
            state: from `start`; changed in place.
            ids: [B, K] long, first `start_ids`, then the ids chosen for the previous step, special ids included; or
                several steps at once, [B, K, n] (a prompt).
        Returns:
            hidden [B, D] of step state.step (before the call), or [B, n, D] of n steps, for the head's `begin`.
        Raises:
            ValueError: the number of rows or codebooks differs, or the steps exceed the capacity.
        """
        several = ids.dim() == 3
        read = ids if several else ids.unsqueeze(-1)
        B, K, n = read.shape
        if (B, K) != (state.num_rows, self.num_codebooks):
            raise ValueError(
                f"ids are {list(ids.shape)}, the generation has {state.num_rows} rows of {self.num_codebooks} codebooks"
            )
        if state.step + n > state.capacity:
            raise ValueError(
                f"step {state.step + n} is beyond the capacity of {state.capacity} steps; start with a larger capacity"
            )
        steps = torch.arange(state.step, state.step + n, device=read.device)
        x = self.positions.add(
            self._joined(self.input(read), state.summed, None if state.step else state.first), steps, 0, None
        )
        if state.cache.turned:
            table = self.positions.table(steps, state.num_frames, 0, None)
        else:
            steps = torch.arange(state.step + n, device=read.device)
            table = self.positions.table(steps, state.num_frames, state.prefix_length, state.prefix_mask)
        hidden = self.transformer(x, table, memory=state.memory, cache=state.cache)
        state.step += n
        return hidden if several else hidden[:, 0]

    @torch.no_grad()
    def read_at(self, state: DecodingState, ids: Tensor, step: Tensor) -> Tensor:
        """`read` for a single step under torch.compile or CUDA graphs: the step is a tensor, nothing depends on a
        Python number, and state.step does not change.

        Args:
            state: from `start`, changed in place; its cache's `position` is set, and at least one step has been read.
            ids: [B, K] long, of the previous step.
            step: long [], after the first step.
        Returns:
            hidden [B, D].
        """
        steps = step.reshape(1)
        x = self.positions.add(self._joined(self.input(ids.unsqueeze(-1)), state.summed, None), steps, 0, None)
        if state.cache.turned:
            table = self.positions.table(steps, state.num_frames, 0, None)
        else:
            steps = torch.cat([torch.arange(state.capacity, device=ids.device), steps])
            table = self.positions.table(steps, state.num_frames, state.prefix_length, state.prefix_mask)
        return self.transformer(x, table, memory=state.memory, cache=state.cache)[:, 0]

    def rewind(self, state: DecodingState, step: int) -> None:
        """Discard step `step` and all later ones; the next `read` is at step `step`."""
        assert 0 <= step <= state.step
        state.cache.rewind(state.prefix_length + step)
        state.step = step

    @torch.no_grad()
    def step(self, state: DecodingState, ids: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Read the ids of the previous step and return the logits of this one.

        Args:
            state, ids: as for `read`, with the same errors.
            chosen: ids of this step (or these steps), shaped like `ids`, for a head that predicts codebooks
                sequentially (`DecodeLoop` shows how such a head produces them one by one).
        Returns:
            logits [B, J, V'] of step state.step (before the call), or [B, J, n, V'] of n steps.
        """
        if chosen is None and len(self.head.stages_at(0)) > 1:
            raise ValueError(
                f"head '{self.config.head.kind}' reads the codes of the step it predicts; pass them as `chosen`"
            )
        first = state.step
        hidden = self.read(state, ids)
        if ids.dim() == 3:
            return self.head(hidden, chosen, first).transpose(1, 2)
        return self.head(hidden.unsqueeze(1), None if chosen is None else chosen.unsqueeze(-1), first)[:, 0]

    # Private

    def _read_all(
        self, codes: Tensor, lengths: Tensor | None, conditions: ConditionBatch | None, side: int = 1
    ) -> tuple[Arranged, Tensor]:
        """The codes in pattern order, and for each step the hidden state [B, S, D] that has attended to all earlier
        steps (or squares of frames)."""
        arranged = self.arrangement.arrange(codes, lengths)
        batch = conditions or ConditionBatch()
        self.conditions.check(batch, codes.shape[0])
        joined, first = self._take_first(self.conditions(batch))
        start = self.start_ids(len(codes), codes.device).unsqueeze(-1)
        patches = Patches(self.spec.geometry, side) if side > 1 else None
        if patches is None:
            x = self.input(torch.cat([start, arranged.ids[:, :, :-1]], dim=2))
        else:
            x = torch.cat([self.input(start), patches.mean(self.input(arranged.ids))[:, :-1]], dim=1)
        x = self._joined(x, joined.summed, first)
        total_frames = codes.shape[2] if lengths is None else lengths[:, None]
        hidden = self._transform(x, joined, total_frames, side)
        return arranged, hidden if patches is None else patches.spread(hidden)

    def _transform(self, x: Tensor, joined: FusedConditions, num_frames: int | Tensor, side: int = 1) -> Tensor:
        """Run the blocks over whole sequences x [B, S, D] after the conditions' prefix."""
        steps = torch.arange(x.shape[1], device=x.device)
        P = 0
        if joined.prefix is not None:
            P = joined.prefix.shape[1]
            x = torch.cat([joined.prefix.to(x.dtype), x], dim=1)
        x = self.positions.add(x, steps, P, joined.prefix_mask)
        table = self.positions.table(steps, num_frames, P, joined.prefix_mask, side)
        memory = self._remember(joined)
        mask = self._mask(P, len(steps), joined.prefix_mask, x.device)
        return self.transformer(self.dropout(x), table, mask=mask, causal=mask is None, memory=memory)[:, P:]

    def _joined(self, x: Tensor, summed: Tensor | None, first: Tensor | None) -> Tensor:
        """x [B, S, D] with its first step replaced and the summed conditions added."""
        if first is not None:
            x = torch.cat([first.to(x.dtype), x[:, 1:]], dim=1)
        return x if summed is None else x + summed

    def _take_first(self, joined: FusedConditions) -> tuple[FusedConditions, Tensor | None]:
        """The conditions without the prefix token that replaces the start token, and that token [B, 1, D]."""
        if self.config.start == "token" or joined.prefix is None:
            return joined, None
        prefix, mask, P = joined.prefix, joined.prefix_mask, joined.prefix.shape[1] - 1
        if not P:
            return replace(joined, prefix=None, prefix_mask=None), prefix
        return replace(joined, prefix=prefix[:, :P], prefix_mask=None if mask is None else mask[:, :P]), prefix[:, P:]

    def _conditions_as_in_eval(self, batch: ConditionBatch) -> FusedConditions:
        if not self.conditions.training:
            return self.conditions(batch)
        self.conditions.eval()  # generation never uses condition dropout, even during training
        try:
            return self.conditions(batch)
        finally:
            self.conditions.train()

    def _remember(self, joined: FusedConditions) -> Memory | None:
        """Keys and values for cross-attention, in the dtype of the weights: precomputed vectors may have another."""
        if joined.memory is None:
            return None
        return self.transformer.remember(joined.memory.to(self.dtype), joined.memory_mask)

    def _mask(self, P: int, S: int, prefix_mask: Tensor | None, device: torch.device) -> Tensor | None:
        """Attention mask of P prefix tokens and S steps, bool [B or 1, 1, P + S, P + S]; None: causal."""
        window = self.config.window
        if prefix_mask is None and (window is None or S <= window):
            return None
        positions = torch.arange(P + S, device=device)
        return causal_mask(positions, positions, P, prefix_mask, window)

    def _make_cache(self, choice: CacheChoice | None, shape: CacheShape) -> Cache:
        return make_cache(choice, shape)

    def _compute_dtype(self) -> torch.dtype:
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.dtype

    def extra_repr(self) -> str:
        return f"{self.num_parameters / 1e6:.2f} M parameters, tokenizer '{self.spec.name}'"


def _check_weights(weights: tuple[float, ...] | None, K: int) -> Tensor | None:
    if weights is None:
        return None
    if len(weights) != K:
        raise ConfigError(f"lm.loss_weights has {len(weights)} entries, but there are {K} codebooks; give {K}")
    return torch.tensor(weights, device="cpu")
