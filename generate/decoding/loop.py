"""The autoregressive decode loop. generate/execution/decode_step.py defines a step, generate/execution/step_runner.py
how it is run.

    lm.start        prefill of the conditions
    first step      prefill of `start` and the prompt, several steps at once; all later steps are alike
    more steps      one by one: eager, compiled, or as a CUDA graph, until all rows have ended
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lm.conditioning.registry import ConditionBatch
from ...lm.generation_config import Guidance
from ...lm.kv_cache.config import CacheChoice
from ...lm.models.causal import TokenLM
from ..execution.decode_step import DecodeBuffers, DecodeStep
from ..execution.step_runner import CapturedStep, StepName, choose_way, programs_of
from ..requests.settings import Length, check_length, check_prompt, check_seeds
from ..sampling.filters import NOT_NUMBERS, SamplingConfig
from ..sampling.guidance import ClassifierFreeGuidance
from ..sampling.token_sampler import Sampler

Progress = Callable[[int, int], None]
"""on_progress(done, total), in steps times rows; done jumps to total if rows end early."""


@dataclass(frozen=True)
class Generated:
    """Codes of a batch."""

    codes: Tensor
    """[B, K, T] long, T the frames of the longest row; 0 beyond a row's length. The prompt comes first."""
    lengths: Tensor
    """[B] long, frames of each row."""
    ended: Tensor
    """[B] bool: the row sampled its end; all True if the length is fixed."""


class DecodeLoop:
    """Decoding state of a batch: call `step` until `done`, then `result`; or, for one row, iterate over `frames`."""

    drafts = False
    """Whether a call of `step` may produce several steps."""

    def __init__(
        self,
        lm: TokenLM,
        conditions: ConditionBatch,
        seeds: Sequence[int],
        length: Length,
        sampling: SamplingConfig | None = None,
        guidance: Guidance = 1.0,
        prompt: Tensor | None = None,
        cache: CacheChoice | None = None,
        step: StepName = "eager",
    ):
        """Check the settings and prefill the conditions; arguments and errors as in `generate_codes`."""
        arrangement = lm.arrangement
        B, K, device = len(seeds), arrangement.num_codebooks, lm.device
        self.lm, self.arrangement = lm, arrangement
        self.length = check_length(length, arrangement.variable_length)
        seeds = check_seeds(seeds)
        prompt = check_prompt(prompt, B, arrangement.cardinalities, length)
        self.num_steps = arrangement.num_steps(length.max_frames)
        self.asked, self.way = step, choose_way(step, lm, self.drafts)
        """How steps were requested to run, and how they run."""
        steady = self.way != "eager"
        room = programs_of(lm).room(B, self.num_steps) if steady else self.num_steps
        guide = ClassifierFreeGuidance(guidance, lm, self.num_steps, room=room)
        end_frames, first_end_step = torch.full((room,), -1), None
        if not length.fixed:
            end_frames[: self.num_steps] = arrangement.table(length.max_frames + 1)[0, : self.num_steps]
            first_end_frame = torch.tensor([max(length.min_frames, prompt.shape[2])])
            first_end_step = int(arrangement.steps_of(first_end_frame)[0, 0])
        sampler = Sampler(
            sampling or SamplingConfig(), arrangement, lm.head.symbols, length.max_frames, first_end_step, device, room
        )
        self.board = DecodeBuffers(
            step=torch.zeros((), dtype=torch.long, device=device),
            columns=torch.zeros(B, K, 1 + room, dtype=torch.long, device=device),
            given=torch.zeros(K, room, dtype=torch.bool, device=device),
            end_frames=end_frames.to(device),
            row_lengths=torch.full((B,), length.max_frames, dtype=torch.long, device=device),
            ended=torch.full((B,), length.fixed, dtype=torch.bool, device=device),
            broken=torch.zeros((), dtype=torch.bool, device=device),
            seeds=torch.tensor(seeds, dtype=torch.long, device=device),
        )
        self.board.columns[:, :, 0] = lm.start_ids(B)
        self.steps_of = arrangement.steps_of(torch.arange(length.max_frames, device=device), length.max_frames)
        """[K, T]: the step of each code."""
        self.complete_after: list[int] = self.steps_of.amax(dim=0).tolist()
        """The step that completes each frame, in ascending order."""

        num_frames = length.max_frames if length.fixed else None
        rows = guide.branches * B
        self.state = lm.start(guide.conditions(conditions.to(device)), room, rows, num_frames, cache, steady)
        self._step = DecodeStep(lm, self.state, self.board, guide, sampler, length.fixed)
        self._program: CapturedStep | None = None
        self.position = self._write_prompt(prompt.to(device)) if prompt.shape[2] else 0
        """The next step."""

    @torch.no_grad()
    def step(self) -> None:
        """Generate the ids of the next step."""
        if self.way == "eager" or not self.state.step:  # the first step reads a prompt of any length
            self._choose(self.position, self._read_to(self.position, 1)[:, 0])
        else:
            if self._program is None:
                self._take_program()
            if self._program is not None:
                self._program.calls[self.position % self._step.period]()
        self.position += 1

    @property
    def columns(self) -> Tensor:
        """[B, K, 1 + S]: the model's input, `start` followed by the ids of each step."""
        return self.board.columns

    @property
    def done(self) -> bool:
        """Whether all frames of all rows are complete. Synchronizes with the device."""
        return self.num_complete >= self._longest()

    @property
    def num_complete(self) -> int:
        """Number of leading frames whose codes are all known, in rows that are long enough."""
        return bisect_right(self.complete_after, self.position - 1)

    def frames(self) -> Iterator[Tensor]:
        """Run to the end and yield codes [K, n] as soon as their frames are complete; for a batch of one row."""
        assert len(self.board.seeds) == 1
        sent = 0
        while True:
            longest = self._longest()
            ready = min(self.num_complete, longest)
            if ready > sent:
                yield self._codes(sent, ready)[0]
                sent = ready
            if self.num_complete >= longest:
                return
            self.step()

    def so_far(self) -> Tensor:
        """Codes [B, K, T] of all frames, -1 where none has been sampled yet; for sequences of a fixed length."""
        return self._codes(0, self.length.max_frames).masked_fill(self.steps_of >= self.position, -1)

    def result(self) -> Generated:
        """The generated codes, on the CPU. ValueError: some logits could not be sampled from."""
        longest, lengths = self._longest(), self.board.row_lengths
        codes = self._codes(0, longest)
        beyond = torch.arange(longest, device=codes.device) >= lengths[:, None, None]
        return Generated(codes.masked_fill(beyond, 0).cpu(), lengths.cpu(), self.board.ended.cpu())

    def _longest(self) -> int:
        """Frames of the longest row as far as known; ValueError if some logits could not be sampled from. The only
        device synchronization that a step may need."""
        longest, broken = torch.stack([self.board.row_lengths.max(), self.board.broken.long()]).tolist()
        if broken:
            raise ValueError(NOT_NUMBERS)
        return longest

    def _read_to(self, s: int, count: int) -> Tensor:
        """Hidden states [R, count, D] of the last steps up to s, for all rows the model runs. The model reads the
        unread columns: one, or the prompt at first."""
        ids = self._step.guide.rows(self.board.columns[:, :, self.state.step : s + 1])
        return self.lm.read(self.state, ids)[:, -count:]

    def _choose(self, s: int, hidden: Tensor, is_guess: bool = False) -> None:
        """Sample and write the ids of step s from hidden states [R, D]; draft ids cannot end a row."""
        self._step.choose(self.board.step.fill_(s), s % self._step.period, hidden, is_guess)

    def _take_program(self) -> None:
        """Switch to a captured step and its tensors for all later steps."""
        self.board.step.fill_(self.position)
        self.state.cache.position = torch.tensor(self.state.cache.length, device=self.lm.device)
        programs = programs_of(self.lm)
        take = programs.take_graph if self.asked == "auto" else programs.take
        self._program = take(self, self._step, self.way)
        if self._program is None:  # no graph could be captured, and none was requested explicitly
            self.way = "eager"
            return
        self._step = self._program.step
        self.board, self.state = self._step.board, self._step.state

    def _write_prompt(self, prompt: Tensor) -> int:
        """Write the prompt [B, K, t] into its cells; returns the first step with an open cell."""
        board, where = self.board, self.steps_of[:, : prompt.shape[2]]
        board.given.scatter_(1, where, True)
        board.columns.scatter_(2, where.expand(len(prompt), -1, -1) + 1, prompt)
        for s in range(self.num_steps):
            forced = self.arrangement.forced_ids(s, board.row_lengths[:1])[0] >= 0
            if not bool((forced | board.given[:, s]).all()):
                return s
            column = board.columns[:, :, s + 1]
            board.columns[:, :, s + 1] = self._step.filled(torch.tensor(s, device=column.device), column, column)
        raise AssertionError("a prompt is shorter than what is to be made")

    def _codes(self, first: int, last: int) -> Tensor:
        """Ids [B, K, last - first] of frames first .. last - 1."""
        where, columns = self.steps_of[:, first:last] + 1, self.board.columns
        return columns.gather(2, where.expand(len(columns), -1, -1))


def one_row(conditions: ConditionBatch, row: int) -> ConditionBatch:
    """Conditions of one row, without the padding caused by longer texts or embeddings in the batch."""
    return conditions.rows(slice(row, row + 1)).trimmed()
