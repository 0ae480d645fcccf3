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

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..conditioning.pointers import Pointers
from ..conditioning.registry import ConditionBatch, FusedConditions, beside_at
from ..kv_cache.config import CacheChoice
from ..kv_cache.registry import make_cache
from ..ops.loss import IGNORED, LossReport
from ..ops.rotary import SinusoidalConfig
from ..patterns.pattern import Arranged
from .base import DecodePlan
from .decoding_state import DecodingState
from .next_patch import Patches
from .pointer_steps import StepPointers, check_durations, step_pointers
from .prefill import prefill
from .transformer_lm import LMOutput, TransformerLM

MOST_ROTATED = 1 << 16
"""Steps whose rotary table is kept for a generation; beyond, each step computes its own."""


class TokenLM(TransformerLM):
    """The causal language model over one tokenizer's codes: each step is predicted from the steps before it.

    Args and errors as for TransformerLM.
    """

    decode_plan = DecodePlan("autoregressive", in_order=True)
    programs: Any = None
    """Compiled and captured decode steps (generate/execution/step_runner.py); neither saved nor copied."""

    # Whole sequences

    def forward(
        self, codes: Tensor, lengths: Tensor | None = None, conditions: ConditionBatch | None = None
    ) -> LMOutput:
        """Compute the logits of every id given the ids of earlier steps.

        Args:
            codes: [B, K, T] long; with a text stream [B, K + 1, P], the text first (lm/patterns/text_stream.py).
            lengths: [B] long, frames of each row; None: all T. A row's logits depend neither on codes beyond its length
                nor on other rows.
            conditions: for B rows; None only if the model has no conditions.
        Raises:
            ValueError: codes, lengths or conditions do not fit the model; the message names which.
        """
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
        """Masked cross-entropy per codebook and its mean, and that of the advances of an aligned text; in training
        mode also the multi-token prediction loss.

        Args:
            codes, lengths, conditions: as for `forward`, with the same errors.
            side: above 1, squares of side x side frames are predicted at once (next_patch.py).
        """
        arranged, hidden, advances = self._hidden_and_advances(codes, lengths, conditions, side)
        terms = self.head.losses(hidden, arranged.ids, arranged.mask, label_smoothing)
        report = self.report(terms, arranged.mask, advances)
        if self.ahead is None or not self.training:
            return report
        ahead = self.ahead.losses(self.head, hidden, arranged.ids, arranged.mask, label_smoothing)
        return replace(report, ahead=ahead.sum(dim=(0, 2)) / report.count.clamp(min=1))

    def hidden_states(
        self, codes: Tensor, lengths: Tensor | None, conditions: ConditionBatch | None, side: int = 1
    ) -> tuple[Arranged, Tensor]:
        """The codes in pattern order, and for each step the hidden state [B, S, D] that has attended to all earlier
        steps (or squares of frames)."""
        return self._hidden_and_advances(codes, lengths, conditions, side)[:2]

    def _hidden_and_advances(
        self, codes: Tensor, lengths: Tensor | None, conditions: ConditionBatch | None, side: int
    ) -> tuple[Arranged, Tensor, tuple[Tensor, Tensor] | None]:
        """`hidden_states`, and if a text is aligned the losses of its advances with their mask, [B, S] both."""
        batch = conditions or ConditionBatch()
        arranged = self.arranged(codes, lengths, batch)
        self.conditions.check(batch, codes.shape[0])
        joined, first = self.split_first(self.conditions(batch))
        patches = Patches(self.spec.geometry, side) if side > 1 else None
        if patches is None:
            x = self.input(self.read_ids(arranged.ids, batch.given))
        else:
            start = self.start_ids(len(codes), codes.device).unsqueeze(-1)
            x = torch.cat([self.input(start), patches.mean(self.input(arranged.ids))[:, :-1]], dim=1)
        x = self.add_conditions(x, joined.summed, first)
        if joined.beside is not None:
            x = x + beside_at(joined.beside, torch.arange(x.shape[1], device=x.device)).to(x.dtype)
        places = self.place_steps(joined, codes, lengths)
        if joined.units is not None and places is not None:
            x = x + joined.units.at(places.read).to(x.dtype)
        total_frames = codes.shape[2] if lengths is None else lengths[:, None]
        hidden = self.transform(x, joined, total_frames, side)
        return (
            arranged,
            hidden if patches is None else patches.spread(hidden),
            self.advance_losses(hidden, joined, places),
        )

    def place_steps(self, joined: FusedConditions, codes: Tensor, lengths: Tensor | None) -> StepPointers | None:
        """The pointers of the steps of whole sequences, if a text is aligned with the codes [B, K, T].

        Raises:
            ValueError: the durations are missing, or do not sum to the number of frames (checked on the CPU only).
        """
        if joined.units is None:
            return None
        T = codes.shape[2]
        check_durations(joined.units, T if lengths is None else lengths)
        steps = torch.arange(self.arrangement.num_steps(T + 1), device=codes.device)
        return step_pointers(self.arrangement, joined.units, steps, T if lengths is None else lengths, T)

    def advance_losses(
        self, hidden: Tensor, joined: FusedConditions, places: StepPointers | None, inside: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Losses of the advances from the hidden states [B, S, D] of the steps, and their mask, [B, S] both.

        Args:
            inside: [B, S] bool, for packed hidden states [1, N, D]: the steps that they are of.
        """
        aligned = self.conditions.aligned
        if aligned is None or joined.units is None or places is None:
            return None
        reach, wanted = places.reach(joined.units), places.wanted
        if inside is not None:
            reach, wanted = reach[inside].unsqueeze(0), wanted[inside].unsqueeze(0)
        return aligned.advance_losses(hidden, reach, wanted), wanted != IGNORED

    # Decoding, one step at a time

    @torch.no_grad()
    def start(
        self,
        conditions: ConditionBatch | None = None,
        capacity: int = 0,
        num_rows: int | None = None,
        num_frames: int | Tensor | None = None,
        cache: CacheChoice | None = None,
        bucketed: bool = False,
    ) -> DecodingState:
        """Begin a generation: allocate the KV cache and prefill the conditions.

        Args:
            conditions: for B rows; None only if the model has no conditions.
            capacity: maximum number of steps, usually `arrangement.num_steps(frames)`.
            num_rows: B, required if the model has no conditions (otherwise it must agree with them).
            num_frames: frames of the sequence if known; required by coarse_first and by grouped with grid positions
                (taken from an image tokenizer).
            cache: the KV cache: the name of a kind or its config (`lm/kv_cache/registry.py`); None: lossless.
            bucketed: pad the conditions to bucketed lengths (shape_buckets.py), so that the steps of many generations
                share shapes.
        Raises:
            ValueError: the conditions do not fit the model, the number of rows is unknown, capacity is below 1, the
                model is in training mode with dropout, or the cache is unknown or does not fit.
        """
        return prefill(self, make_cache, conditions, capacity, num_rows, num_frames, cache, bucketed)

    @torch.no_grad()
    def read(self, state: DecodingState, ids: Tensor, pointers: Pointers | None = None) -> Tensor:
        """Read the ids of the previous step and return the hidden state that predicts this one.

        Args:
            state: from `start`; changed in place.
            ids: [B, K] long, first `start_ids`, then the ids chosen for the previous step, special ids included; or
                several steps at once, [B, K, n] (a prompt).
            pointers: [B, n], of the predicted steps, if a text is aligned.
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
                f"ids are {list(ids.shape)}, expected {state.num_rows} rows of {self.num_codebooks} codebooks"
            )
        if state.step + n > state.capacity:
            raise ValueError(
                f"step {state.step + n} is beyond the capacity of {state.capacity} steps; start with a larger capacity"
            )
        steps = torch.arange(state.step, state.step + n, device=read.device)
        x = self.add_conditions(self.embed_step(read), state.summed, None if state.step else state.first)
        x = self._add_units(x, state, pointers)
        if state.beside is not None:
            x = x + beside_at(state.beside, steps).to(x.dtype)
        x = self.positions.add_after(x, steps, state.prefix_length, state.prefix_mask)
        if state.cache.rotated_keys:
            table = self._rotary(state, steps)
        else:
            steps = torch.arange(state.step + n, device=read.device)
            table = self.positions.table(steps, state.num_frames, state.prefix_length, state.prefix_mask)
        hidden = self.transformer(x, table, memory=state.memory, cache=state.cache)
        state.step += n
        return hidden if several else hidden[:, 0]

    @torch.no_grad()
    def read_at(self, state: DecodingState, ids: Tensor, step: Tensor, pointers: Pointers | None = None) -> Tensor:
        """`read` for a single step under torch.compile or CUDA graphs: the step is a tensor, nothing depends on a
        Python number, and state.step does not change.

        Args:
            state: from `start`, changed in place; its cache's `position` is set, and at least one step has been read.
            ids: [B, K] long, of the previous step.
            step: long [], after the first step.
            pointers: as for `read`.
        Returns:
            hidden [B, D].
        """
        steps = step.reshape(1)
        x = self.add_conditions(self.embed_step(ids.unsqueeze(-1)), state.summed, None)
        x = self._add_units(x, state, pointers)
        if state.beside is not None:
            x = x + beside_at(state.beside, steps).to(x.dtype)
        x = self.positions.add_after(x, steps, state.prefix_length, state.prefix_mask)
        if state.cache.rotated_keys:
            table = self.positions.table_after(steps, state.num_frames, state.prefix_length, state.prefix_mask)
        else:
            steps = torch.cat([torch.arange(state.capacity, device=ids.device), steps])
            table = self.positions.table(steps, state.num_frames, state.prefix_length, state.prefix_mask)
        return self.transformer(x, table, memory=state.memory, cache=state.cache)[:, 0]

    def _rotary(self, state: DecodingState, steps: Tensor) -> Tensor | None:
        """The rotary table of the next steps, from that of all steps unless they are very many."""
        prefix = state.prefix_length, state.prefix_mask
        if isinstance(self.config.rope, SinusoidalConfig) or state.capacity > MOST_ROTATED:
            return self.positions.table_after(steps, state.num_frames, *prefix)
        if state.rotary is None:
            all_steps = torch.arange(state.capacity, device=steps.device)
            state.rotary = self.positions.table_after(all_steps, state.num_frames, *prefix)
        assert state.rotary is not None
        return state.rotary[:, state.step : state.step + len(steps)]

    def _add_units(self, x: Tensor, state: DecodingState, pointers: Pointers | None) -> Tensor:
        """The input x [B, n, D] of steps with the units of an aligned text at these pointers."""
        if (state.units is None) != (pointers is None):
            raise ValueError("pass the pointers of a model with the condition 'aligned', and none to other models")
        return x if state.units is None or pointers is None else x + state.units.at(pointers).to(x.dtype)

    def rewind(self, state: DecodingState, step: int) -> None:
        """Discard step `step` and all later ones; the next `read` is at step `step`."""
        assert 0 <= step <= state.step
        state.cache.rewind(state.prefix_length + step)
        state.step = step

    @torch.no_grad()
    def step(
        self, state: DecodingState, ids: Tensor, chosen: Tensor | None = None, pointers: Pointers | None = None
    ) -> Tensor:
        """Read the ids of the previous step and return the logits of this one.

        Args:
            state, ids, pointers: as for `read`, with the same errors.
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
        hidden = self.read(state, ids, pointers)
        if ids.dim() == 3:
            return self.head(hidden, chosen, first).transpose(1, 2)
        return self.head(hidden.unsqueeze(1), None if chosen is None else chosen.unsqueeze(-1), first)[:, 0]
