"""The autoregressive decode loop, top-down.

    DecodeLoop(lm, request)    checks the request and reads the conditions: prefill, part one
    first call of step         prefill, part two: `start` and the prompt in one forward pass, then samples the first ids
    further calls of step      one decode step each, until all rows have ended
    result                     the codes of each row, cut at its end

A decode step (execution/decode_step.py) is: forward pass over one step (lm/models/), logits of the head (lm/heads/),
classifier-free guidance (sampling/guidance.py), sampling (sampling/token_sampler.py), write into the decode buffers. It
runs eagerly, compiled, or as a CUDA graph (execution/step_runner.py). Speculative decoding replaces `step`
(speculative.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...lm.conditioning.pointers import Pointers
from ...lm.models.causal import TokenLM
from ...tokenize.codes import pad_and_cat
from ..execution.decode_step import DecodeStep
from ..execution.step_runner import CapturedStep, choose_step_kind, programs_of
from ..requests.request import Request, check_request
from ..sampling.filters import NOT_NUMBERS
from ..sampling.guidance import ClassifierFreeGuidance
from .pacing import durations, first_pass
from .prepare import make_advances, make_buffers, make_sampler, write_durations, write_prompt

Progress = Callable[[int, int], None]
"""on_progress(done, total), in steps times rows; done jumps to total if rows end early."""
CHECK_EVERY = 8
"""Steps between checks whether all rows have ended, except on the CPU: each check synchronizes with the device."""


@dataclass(frozen=True)
class Generated:
    """Codes of a batch."""

    codes: Tensor
    """[B, K, T] long, T the frames of the longest row; 0 beyond a row's length. The prompt comes first."""
    lengths: Tensor
    """[B] long, frames of each row."""
    ended: Tensor
    """[B] bool: the row sampled its end; all True if the length is fixed."""
    units: Tensor | None = None
    """[B, T] long: the unit of an aligned text that each frame speaks, -1 beyond a row's length; None: no such text."""
    texts: tuple[Tensor, ...] | None = None
    """[L] long of each row: the text ids of its sequence, given and written; None: there is no text stream."""


class DecodeLoop:
    """The decoding of a batch: `run`; or `step` until `done`, then `result`; or, for one row, iterate over `frames`."""

    drafts = False
    """Whether a call of `step` may produce several steps."""

    def __init__(self, lm: TokenLM, request: Request):
        """Check the request against the model and prefill the conditions; errors as in `generate_codes`."""
        check_request(lm, request)
        self.lm, self.length, config = lm, request.length, request.config
        self.num_steps = lm.arrangement.num_steps(self.length.max_frames)
        self.asked, self.step_kind = config.step, choose_step_kind(config.step, lm, self.drafts)
        """How steps were requested to run, and how they run."""
        rows, captured = len(request.seeds), self.step_kind != "eager"
        capacity = programs_of(lm).capacity(rows, self.num_steps) if captured else self.num_steps
        task = None if request.stream is None else request.stream.task
        guidance = ClassifierFreeGuidance(config.guidance, lm, self.num_steps, capacity=capacity, task=task)
        sampler = make_sampler(lm, request, capacity)
        self.buffers = make_buffers(lm, request, capacity, sampler.draws_again)
        frames = torch.arange(self.length.max_frames, device=lm.device)
        self.steps_of = lm.arrangement.steps_of(frames, self.length.max_frames)
        """[K, T]: the step of each code."""
        self.complete_after: list[int] = self.steps_of.amax(dim=0).tolist()
        """The step that completes each frame, in ascending order."""

        self.state = lm.start(
            guidance.conditions(request.conditions.to(lm.device)),
            capacity,
            guidance.branches * rows,
            self.length.max_frames if self.length.fixed else None,
            config.cache,
            captured,
        )
        advances = make_advances(lm, request)
        units = None if lm.conditions.aligned is None else self.state.units
        if units is not None and units.frames is not None:
            write_durations(lm, self.buffers, units.counts[:rows], units.frames[:rows], self.length.max_frames)
            self.state.units = replace(units, frames=None)  # no step reads them
        self._paced = request if advances is not None and config.speed != 1 else None
        """The request, until its durations are known (pacing.py)."""
        no_end = self.length.fixed or units is not None
        only_text = task == "write"
        self._step = DecodeStep(lm, self.state, self.buffers, guidance, sampler, no_end, advances, only_text)
        self._program: CapturedStep | None = None
        self._calls: Sequence[Callable[[], object]] | None = None
        """For each phase of the head, runs one step; None: steps read any number of columns."""
        self.position = 0
        """The next step."""
        self._before = None if request.stream is None else request.stream.before
        """[B]: leading positions of each row that are no part of the result."""
        begun = request.prompt if request.stream is None else request.stream.codes
        if begun is not None and begun.shape[2]:
            lengths = None if request.stream is None else request.stream.lengths.to(lm.device)
            self.position = write_prompt(self._step, begun.to(lm.device), self.steps_of, lengths)

    def run(self, on_step: Callable[[int], None] | None = None) -> Generated:
        """Decode to the end. `on_step` is called with the number of steps done."""
        every, checked = 1 if self.lm.device.type == "cpu" else CHECK_EVERY, 0
        while self.position < self.num_steps:
            self.step()
            if on_step is not None:
                on_step(self.position)
            if not self.length.fixed and self.position - checked >= every:
                checked = self.position
                if self.done:
                    break
        return self.result()

    @torch.no_grad()
    def step(self) -> None:
        """Generate the ids of the next step; the first call prefills `start` and the prompt, whatever their length."""
        if self.step_kind != "eager" and self.state.step and self._calls is None:
            self._take_program()
        if self._calls is None:
            hidden = self._forward(self.position, 1)
            self._sample(self.position, hidden[:, 0])
        else:
            self._calls[self.position % self._step.period]()
        self.position += 1

    def _forward(self, s: int, count: int) -> Tensor:
        """Hidden states [R, count, D] of the last steps up to s, for all rows the model runs. The model reads the
        columns that it has not read: one, or the whole prompt at first."""
        if self._paced is not None:
            self._set_pace(self._paced)
        new = slice(self.state.step, s + 1)
        ids, pointers = self._step.guide.read(self.buffers.columns[:, :, new]), self.buffers.pointers
        if pointers is not None:
            pointers = self._step.for_all_rows(Pointers(pointers.unit[:, new], pointers.since[:, new]))
        return self.lm.read(self.state, ids, pointers)[:, -count:]

    def _sample(self, s: int, hidden: Tensor, is_draft: bool = False) -> None:
        """Sample and write the ids of step s from hidden states [R, D]; draft ids cannot end a row."""
        self._step.choose(self.buffers.step.fill_(s), s % self._step.period, hidden, is_draft)

    def _set_pace(self, request: Request) -> None:
        """Run the first pass and write the durations of this one."""
        self._paced, self._step.advances = None, None
        first, units = DecodeLoop(self.lm, first_pass(request)).run(), self.state.units
        assert first.units is not None and units is not None
        frames = durations(first.units, first.ended, units.vectors.shape[1] - 1, request.config.speed)
        counts = units.counts[: self.buffers.num_rows]
        write_durations(self.lm, self.buffers, counts, frames.to(counts.device), self.length.max_frames)

    def _take_program(self) -> None:
        """Switch to a captured step and its tensors for all later steps, which are counted in a tensor from here on."""
        self.buffers.step.fill_(self.position)
        self.state.cache.position = torch.tensor(self.state.cache.length, device=self.lm.device)
        programs = programs_of(self.lm)
        take = programs.take_graph if self.asked == "auto" else programs.take
        self._program = take(self, self._step, self.step_kind)
        if self._program is None:  # no graph could be captured, and none was requested explicitly
            self._calls = [partial(self._step.advance, phase) for phase in range(self._step.period)]
            return
        self._step, self._calls = self._program.step, self._program.calls
        self.buffers, self.state = self._step.buffers, self._step.state

    @property
    def columns(self) -> Tensor:
        """[B, K, 1 + S]: the model's input, `start` followed by the ids of each step."""
        return self.buffers.columns

    @property
    def done(self) -> bool:
        """Whether all frames of all rows are complete. Synchronizes with the device."""
        return self.num_complete >= self._longest()

    @property
    def num_complete(self) -> int:
        """Number of leading frames whose codes are all known, in rows that are long enough."""
        return bisect_right(self.complete_after, self.position - 1)

    def frames(self) -> Iterator[Tensor]:
        """Run to the end and yield codes [K, n] as soon as their frames are complete; for a batch of one row. Of a
        sequence with text they are those of the tokenizer, n > 0."""
        assert self.buffers.num_rows == 1
        sent = 0 if self._before is None else int(self._before[0])
        while True:
            longest = self._longest()
            ready = min(self.num_complete, longest)
            if ready > sent:
                codes = self._codes(sent, ready)[0]
                if self.lm.text_stream is not None:
                    codes = self.lm.text_stream.split(codes)[1]
                if codes.shape[1]:
                    yield codes
                sent = ready
            if self.num_complete >= longest:
                return
            self.step()

    def so_far(self) -> Tensor:
        """Codes [B, K, T] of all frames, -1 where none has been sampled yet; for sequences of a fixed length."""
        return self._codes(0, self.length.max_frames).masked_fill(self.steps_of >= self.position, -1)

    def result(self) -> Generated:
        """The generated codes, on the CPU. ValueError: some logits could not be sampled from."""
        longest, lengths = self._longest(), self.buffers.row_lengths
        codes = self._codes(0, longest)
        if self.lm.text_stream is not None:
            return self._split(codes.cpu(), lengths.tolist())
        beyond = torch.arange(longest, device=codes.device) >= lengths[:, None, None]
        units = self._units(longest)
        if units is not None:
            units = units.masked_fill(beyond[:, 0], -1).cpu()
        return Generated(codes.masked_fill(beyond, 0).cpu(), lengths.cpu(), self.buffers.ended.cpu(), units)

    def _split(self, sequences: Tensor, lengths: list[int]) -> Generated:
        """The text and the frames of sequences [B, K + 1, P] of these lengths."""
        stream = self.lm.text_stream
        assert stream is not None and self._before is not None
        rows = zip(sequences, self._before.tolist(), lengths, strict=True)
        parts = [stream.split(row[:, first:last]) for row, first, last in rows]
        frames = torch.tensor([codes.shape[1] for _, codes in parts])
        codes, texts = pad_and_cat([codes[None] for _, codes in parts]), tuple(text for text, _ in parts)
        return Generated(codes, frames, self.buffers.ended.cpu(), texts=texts)

    def _units(self, num_frames: int) -> Tensor | None:
        """The unit [B, T] that each frame speaks, if a text is aligned."""
        pointers = self.buffers.pointers
        return None if pointers is None else pointers.unit[:, self.steps_of[:, :num_frames].amin(dim=0)]

    def _longest(self) -> int:
        """Frames of the longest row as far as known; ValueError if some logits could not be sampled from. The only
        device synchronization that a step may need."""
        longest, broken = torch.stack([self.buffers.row_lengths.max(), self.buffers.broken.long()]).tolist()
        if broken:
            raise ValueError(NOT_NUMBERS)
        return longest

    def _codes(self, first: int, last: int) -> Tensor:
        """Ids [B, K, last - first] of frames first .. last - 1."""
        where, columns = self.steps_of[:, first:last] + 1, self.buffers.columns
        return columns.gather(2, where.expand(len(columns), -1, -1))
