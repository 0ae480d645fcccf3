"""A step of a generation: from the ids of the step before to its own, in tensor operations only.

Drawn for delays [0, 1, 2] and a row whose codebook 0 ends after 3 frames; E = end, P = pad, s = start:

    step        0  1  2  3  4  5  6
    codebook 0  a0 a1 a2 E  P  P  P      codebook 0 draws its end; the row's length becomes 3
    codebook 1  s  b0 b1 b2 E  P  P      the others follow: end in the cell of frame 3, pad after it
    codebook 2  s  s  c0 c1 c2 E  P      frames 0..2 are complete after step 4, and so is the row

What a cell gets depends on the frame it stands for and on the row's length alone (`CodebookPattern.forced_ids`), so the
cascade is the same few tensor operations at every step, for every arrangement. A finished row is fed pad until the last
row is done; rows never see each other, so that changes nothing.

The number of the step is a tensor too. No value is looked at in Python and no shape depends on one, so `advance` can be
compiled, or recorded once and played again (step_runner.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...lm.models.causal import DecodingState, TokenLM
from ..sampling.filters import drawable
from ..sampling.guidance import ClassifierFreeGuidance
from ..sampling.token_sampler import Sampler


@dataclass(frozen=True)
class DecodeBuffers:
    """What steps read and write, on the model's device; S is the number of steps there is room for."""

    step: Tensor
    """[] long: the step that is made next."""
    columns: Tensor
    """[B, K, 1 + S] long, what the model reads: `start`, then the ids of each step."""
    given: Tensor
    """[K, S] bool: cells that hold a code of the prompt; never overwritten."""
    end_frames: Tensor
    """[S] long: the row's length if codebook 0 draws its end in this step, -1 where it cannot."""
    row_lengths: Tensor
    """[B] long, frames of each row as far as is known."""
    ended: Tensor
    """[B] bool: the row drew its end."""
    broken: Tensor
    """[] bool: some logits were no numbers to draw from (`sampling.drawable`)."""
    seeds: Tensor
    """[B] long."""

    def column(self, step: Tensor) -> Tensor:
        """Ids [B, K] of a step (a copy), those of the step before the first are `start`."""
        return self.columns.index_select(2, step.reshape(1) + 1)[:, :, 0]


class DecodeStep:
    """What a step needs, with its number on the board."""

    def __init__(
        self,
        lm: TokenLM,
        state: DecodingState,
        board: DecodeBuffers,
        guide: ClassifierFreeGuidance,
        sampler: Sampler,
        fixed: bool,
    ):
        """`fixed`: no end is drawn."""
        self.lm, self.state, self.board, self.guide, self.sampler, self.fixed = lm, state, board, guide, sampler, fixed
        self.period: int = lm.head.period
        self.stages = [[sampler.stage(places) for places in lm.head.stages_at(phase)] for phase in range(self.period)]
        """For each phase of the head."""

    def parts(self) -> tuple:
        """All tensors and settings that decide what a step does, besides the model and its cache's kind."""
        return self.state.parts(), self.board, self.guide.parts(), self.sampler.parts(), self.stages, self.fixed

    def advance(self, phase: int) -> None:
        """Make the step on the board, once the model's state counts in a tensor: read, draw, write, count.

        Args:
            phase: of the head's stages, step % period.
        """
        board = self.board
        ids = self.guide.rows(board.column(board.step - 1))
        self.choose(board.step, phase, self.lm.read_at(self.state, ids, board.step))
        board.step.add_(1)

    def choose(self, step: Tensor, phase: int, hidden: Tensor, is_guess: bool = False) -> None:
        """Draw and write the ids of a step, stage by stage of the head, from hidden states [R, D] of all rows the model
        runs; from a guess nothing follows yet."""
        lm, board, guide, sampler = self.lm, self.board, self.guide, self.sampler
        head, symbols, column = lm.head, lm.head.symbols, board.column(step)
        draws = sampler.begin(board.seeds, step, board.columns)
        begun = head.begin(self.state.head, hidden, phase)
        for stage, rules in enumerate(self.stages[phase]):
            known = symbols.split(column)
            logits = head.predict(begun, stage, guide.rows(known)).double()
            logits = sampler.forbid(draws, rules, logits.unflatten(0, (-1, len(board.seeds))))
            board.broken.logical_or_(drawable(logits).logical_not())
            drawn = sampler.draw(draws, rules, guide(logits, step, rules.books))
            if rules.first is not None and not (is_guess or self.fixed):
                self._end_rows(step, drawn[:, rules.first])
            ids = symbols.join(drawn if rules.whole else known.index_copy(1, rules.places, drawn))
            column = self.filled(step, column, ids)
        self.board.columns.index_copy_(2, step.reshape(1) + 1, column.unsqueeze(2))

    def filled(self, step: Tensor, column: Tensor, drawn: Tensor) -> Tensor:
        """The column [B, K] of a step: what the arrangement forces, else what the prompt gives, else what was drawn."""
        board = self.board
        forced = self.lm.arrangement.forced_ids(step, board.row_lengths)
        given = board.given.index_select(1, step.reshape(1))[:, 0]
        return torch.where(forced >= 0, forced, torch.where(given, column, drawn))

    def _end_rows(self, step: Tensor, drawn: Tensor) -> None:
        """An end among the values [B] drawn for symbol 0 sets the row's length."""
        board = self.board
        frame = board.end_frames.index_select(0, step.reshape(1))
        ends = (drawn == self.lm.head.symbols.end) & (frame >= 0) & (frame < board.row_lengths)
        board.row_lengths.copy_(torch.where(ends, frame, board.row_lengths))
        board.ended.logical_or_(ends)
