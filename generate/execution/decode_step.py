"""One decode step: computes the ids of a step from those of the previous step, with tensor operations only.

Example with delays [0, 1, 2] and a row whose codebook 0 ends after 3 frames; E = end, P = pad, s = start:

    step        0  1  2  3  4  5  6
    codebook 0  a0 a1 a2 E  P  P  P      codebook 0 draws its end; the row's length becomes 3
    codebook 1  s  b0 b1 b2 E  P  P      the others follow: end in the cell of frame 3, pad after it
    codebook 2  s  s  c0 c1 c2 E  P      frames 0..2 are complete after step 4, and so is the row

Forced ids depend only on the frame of a cell and on the row's length (`CodebookPattern.forced_ids`), so the end cascade
takes the same few tensor operations at every step, for every codebook pattern. A finished row is fed pad until the last
row is done; rows do not interact, so this has no effect on the others.

The step number is a tensor as well. Python reads no value and no shape depends on one, so `advance` can be compiled, or
captured once and replayed (step_runner.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...lm.conditioning.pointers import Pointers
from ...lm.models.causal import TokenLM
from ...lm.models.decoding_state import DecodingState
from ..sampling.advance import AdvanceSampler
from ..sampling.counter_rng import StepNumbers
from ..sampling.filters import drawable
from ..sampling.guidance import ClassifierFreeGuidance
from ..sampling.token_sampler import Sampler


@dataclass(frozen=True)
class DecodeBuffers:
    """Tensors that steps read and write, on the model's device; S is the capacity in steps."""

    step: Tensor
    """[] long: the next step."""
    columns: Tensor
    """[B, K, 1 + S] long, the model's input: `start`, then the ids of each step."""
    given: Tensor
    """[B, K, S] bool: cells that hold prompt codes; never overwritten."""
    end_frames: Tensor
    """[S] long: the row's length if codebook 0 samples its end in this step, -1 where it cannot."""
    row_lengths: Tensor
    """[B] long, frames of each row as far as known."""
    ended: Tensor
    """[B] bool: the row sampled its end."""
    broken: Tensor
    """[] bool: some logits could not be sampled from (`filters.drawable`)."""
    numbers: StepNumbers
    """Random numbers of the sub-tokens [B, J]."""
    second_numbers: StepNumbers | None = None
    """Those of second draws [B, J], if the sampler makes any."""
    advance_numbers: StepNumbers | None = None
    """Those of the advances [B, 1], if a text is aligned."""
    pointers: Pointers | None = None
    """[B, 1 + S], of each step, if a text is aligned."""

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.columns)

    def pointers_at(self, step: Tensor) -> Pointers | None:
        """The pointers [B, 1] that a step reads."""
        if self.pointers is None:
            return None
        unit, since = (each.index_select(1, step.reshape(1)) for each in (self.pointers.unit, self.pointers.since))
        return Pointers(unit, since)

    def column(self, step: Tensor) -> Tensor:
        """Ids [B, K] of a step (a copy); step -1 is `start`."""
        return self.columns.index_select(2, step.reshape(1) + 1)[:, :, 0]


class DecodeStep:
    """The model, state, buffers and sampler of a step; the step number is in the decode buffers."""

    def __init__(
        self,
        lm: TokenLM,
        state: DecodingState,
        buffers: DecodeBuffers,
        guide: ClassifierFreeGuidance,
        sampler: Sampler,
        fixed: bool,
        advances: AdvanceSampler | None = None,
        only_text: bool = False,
    ):
        """`fixed`: no end is sampled. `advances`: samples the advances of an aligned text, which determine the end;
        None if there is none, or the pointers of all steps are in the buffers already. `only_text`: nothing but the
        text channel of a text stream is sampled."""
        self.advances = advances
        self.lm, self.state, self.buffers, self.guide, self.sampler, self.fixed = (
            lm,
            state,
            buffers,
            guide,
            sampler,
            fixed,
        )
        self.period: int = lm.head.period
        self.stages = [[sampler.stage(places) for places in lm.head.stages_at(phase)] for phase in range(self.period)]
        """Sampling stages for each phase of the head."""
        if only_text:
            self.stages = [stages[:1] for stages in self.stages]
        self.apart = Apart.of(lm, buffers.columns.device, only_text)
        self.end_frame = EndFrame.of(lm, sampler)
        self.table = lm.arrangement.step_table(buffers.columns.shape[2] - 1, buffers.columns.device)

    def parts(self) -> tuple:
        """All tensors and settings that determine a step, besides the model and the kind of its cache."""
        rules = self.sampler.parts(), self.stages, self.fixed, None if self.advances is None else self.advances.parts()
        return self.state.parts(), self.buffers, self.guide.parts(), *rules

    def advance(self, phase: int) -> None:
        """Run the step in the decode buffers: forward pass, sample, write, count. The model's state must keep its
        position in a tensor.

        Args:
            phase: phase of the head's stages, step % period.
        """
        buffers = self.buffers
        ids = self.guide.read(buffers.column(buffers.step - 1))
        pointers = self.for_all_rows(buffers.pointers_at(buffers.step))
        self.choose(buffers.step, phase, self.lm.read_at(self.state, ids, buffers.step, pointers))
        buffers.step.add_(1)

    def choose(self, step: Tensor, phase: int, hidden: Tensor, is_draft: bool = False) -> None:
        """Sample and write the ids of a step, stage by stage of the head, from hidden states [R, D] of all rows the
        model runs; draft ids cannot end a row."""
        lm, buffers, guide, sampler = self.lm, self.buffers, self.guide, self.sampler
        head, sub_tokens, column = lm.head, lm.head.sub_tokens, buffers.column(step)
        last = len(self.stages[phase]) - 1
        if self.end_frame is not None:
            column = self.end_frame.begin(column, self._given(step))
        draws = sampler.begin(step, buffers.columns, buffers.numbers, buffers.second_numbers)
        begun = head.begin(self.state.head, hidden, phase)
        for stage, rules in enumerate(self.stages[phase]):
            known = sub_tokens.split(column)
            logits = head.predict(begun, stage, guide.rows(known)).double()
            logits = sampler.forbid(draws, rules, logits.unflatten(0, (-1, buffers.num_rows)))
            if self.end_frame is not None and stage == last:
                logits = self.end_frame.forbid(step, column, logits)
            buffers.broken.logical_or_(drawable(logits).logical_not())
            drawn = sampler.draw(draws, rules, guide(logits, step, rules.books))
            if rules.first is not None and not (is_draft or self.fixed):
                self._end_rows(step, drawn[:, rules.first] == sub_tokens.end)
            ids = sub_tokens.join(drawn if rules.whole else known.index_copy(1, rules.places, drawn))
            column = self.filled(step, column, ids)
        if self.end_frame is not None:
            self._end_rows(step, self.end_frame.ends(column) & ~self._given(step)[:, 1])
        self.buffers.columns.index_copy_(2, step.reshape(1) + 1, column.unsqueeze(2))
        if self.advances is not None:
            self._advance_pointers(step, hidden[: buffers.num_rows], self.advances)

    def for_all_rows(self, pointers: Pointers | None) -> Pointers | None:
        """Pointers of B samples, repeated for all rows the model runs."""
        return None if pointers is None else Pointers(self.guide.rows(pointers.unit), self.guide.rows(pointers.since))

    def _advance_pointers(self, step: Tensor, hidden: Tensor, advances: AdvanceSampler) -> None:
        """Sample and write the pointers of the next step from hidden states [B, D]; a row ends before the frame whose
        pointer is beyond its last unit."""
        buffers, units = self.buffers, self.state.units
        now = buffers.pointers_at(step)
        assert now is not None and units is not None and buffers.pointers is not None
        assert buffers.advance_numbers is not None
        assert self.table is not None, "an aligned text needs variable_length"
        moved, later = advances(hidden, units, now, buffers.advance_numbers.at(step)), step.reshape(1) + 1
        this_frame, frame = self.table.frames_around(step).split(1)
        moves = frame > this_frame
        unit, since = torch.where(moves, moved.unit, now.unit), torch.where(moves, moved.since, now.since)
        buffers.pointers.unit.index_copy_(1, later, unit)
        buffers.pointers.since.index_copy_(1, later, since)
        ends = (unit[:, 0] >= units.counts[: len(hidden)]) & (frame <= buffers.row_lengths) & ~buffers.ended
        buffers.row_lengths.copy_(torch.where(ends, frame, buffers.row_lengths))
        buffers.ended.logical_or_(ends)

    def filled(self, step: Tensor, column: Tensor, drawn: Tensor) -> Tensor:
        """The column [B, K] of a step: ids forced by the codebook pattern, else of the prompt, else absent codes beside
        text, else sampled."""
        buffers = self.buffers
        forced = (self.table or self.lm.arrangement).forced_ids(step, buffers.row_lengths)
        given = self._given(step)
        if self.apart is not None:
            drawn = self.apart.without_frames(step, torch.where(given, column, drawn), buffers.columns)
        return torch.where(forced >= 0, forced, torch.where(given, column, drawn))

    def _given(self, step: Tensor) -> Tensor:
        """[B, K] bool: the cells of a step that hold prompt codes."""
        return self.buffers.given.index_select(2, step.reshape(1))[:, :, 0]

    def _end_rows(self, step: Tensor, ended: Tensor) -> None:
        """Set the length of rows that sampled their end in this step, bool [B]."""
        buffers = self.buffers
        frame = buffers.end_frames.index_select(0, step.reshape(1))
        ends = ended & (frame >= 0) & (frame < buffers.row_lengths)
        buffers.row_lengths.copy_(torch.where(ends, frame, buffers.row_lengths))
        buffers.ended.logical_or_(ends)


@dataclass(frozen=True)
class Apart:
    """The rule that a position of a text stream holds text or a frame: no codes in positions of text."""

    lags: Tensor
    """[K] long: how many steps after the text of a position each channel's code of it comes."""
    absent: Tensor
    """[K] long: the absent id of each channel."""
    num_ids: int
    """Ids below this one are text."""

    @classmethod
    def of(cls, lm: TokenLM, device: torch.device, only_text: bool) -> Apart | None:
        """The rule of a model, or of one that writes; None if there is none."""
        stream = lm.text_stream
        if stream is None or not (only_text or stream.config.positions == "apart"):
            return None
        offsets = torch.tensor(lm.arrangement.layout.offsets, device=device)
        return cls(offsets - offsets[0], torch.tensor(stream.absent_ids, device=device), stream.num_ids)

    def without_frames(self, step: Tensor, column: Tensor, columns: Tensor) -> Tensor:
        """The column [B, K] of a step with `absent` for each code of a position that holds text.

        Args:
            column: its first channel is final.
            columns: [B, K, 1 + S], of `DecodeBuffers`; those of earlier steps are final.
        """
        before = columns[:, 0].index_select(1, (step + 1 - self.lags).clamp(min=0))
        text = torch.where(self.lags == 0, column[:, :1], before) < self.num_ids
        return torch.cat([column[:, :1], torch.where(text, self.absent, column)[:, 1:]], dim=1)


@dataclass(frozen=True)
class EndFrame:
    """The rule that a frame whose codes are all 0 is the end: for a text stream whose text channel predicts nothing."""

    slot: int
    """What the text channel holds beside a frame."""
    first_end_steps: Tensor | None
    """[B or 1, 1] long: no end of a row before this step; None: no end at all."""

    @classmethod
    def of(cls, lm: TokenLM, sampler: Sampler) -> EndFrame | None:
        """The rule of a model, with the limits of its sampler; None if it has another end."""
        stream = lm.text_stream
        if stream is None or not stream.has_end_frame:
            return None
        return cls(stream.slot, sampler.first_end_steps)

    def begin(self, column: Tensor, given: Tensor) -> Tensor:
        """The column [B, K] of a step before its first stage, with the text channel, which is not sampled; given
        [B, K]: the cells of the prompt."""
        return torch.cat([torch.where(given[:, :1], column[:, :1], self.slot), column[:, 1:]], dim=1)

    def forbid(self, step: Tensor, column: Tensor, logits: Tensor) -> Tensor:
        """The logits [*, B, 1, V] of the last codebook without code 0, where it would be an end too early."""
        early = torch.ones_like(column[:, 0], dtype=torch.bool)
        if self.first_end_steps is not None:
            early = (step < self.first_end_steps[:, 0]).expand(len(column))
        zero = torch.arange(logits.shape[-1], device=logits.device) == 0
        wrong = early & (column[:, 1:-1] == 0).all(dim=1)
        return logits.masked_fill(wrong[:, None, None] & zero, float("-inf"))

    def ends(self, column: Tensor) -> Tensor:
        """[B] bool: rows whose frame in the column [B, K] is the end."""
        return (column[:, 1:] == 0).all(dim=1)
