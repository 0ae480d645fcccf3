"""Codebook patterns: the step at which each code of each frame is placed.

A pattern is a table [K, S]: the cell (codebook, step) holds a frame index, or -1 for no code. Training, generation and
streaming use the same table, so they cannot disagree. T = 4 frames, K = 3 codebooks a b c; `.` is a cell without a
code:

    parallel                     a0 a1 a2 a3                 S = T
                                 b0 b1 b2 b3
                                 c0 c1 c2 c3

    delay [0, 1, 2]              a0 a1 a2 a3 .  .            S = T + largest delay
                                 .  b0 b1 b2 b3 .
                                 .  .  c0 c1 c2 c3

    delay [0, 1, 1] (partial)    a0 a1 a2 a3 .
                                 .  b0 b1 b2 b3
                                 .  c0 c1 c2 c3

    delay [0, 1, 2] with         a0 .  .  a1 a2 a3 .  .      the first frame alone, one codebook per step
    flatten_first = 1            .  b0 .  .  b1 b2 b3 .
                                 .  .  c0 .  .  c1 c2 c3

    flat                         a0 .  .  a1 .  .  a2 .  .  a3 .  .       S = T K
                                 .  b0 .  .  b1 .  .  b2 .  .  b3 .
                                 .  .  c0 .  .  c1 .  .  c2 .  .  c3

    partial_flat [0, 1, 1]       a0 .  a1 .  a2 .  a3 .      one step per group of codebooks
                                 .  b0 .  b1 .  b2 .  b3
                                 .  c0 .  c1 .  c2 .  c3

    unrolled [0, 1, 1] with      a0 a1 .  a2 .  a3 .  .  .   older frames first, no step for groups that have not begun
    delays [0, 2, 2]             .  .  b0 .  b1 .  b2 .  b3
                                 .  .  c0 .  c1 .  c2 .  c3

    coarse_first                 a0 a1 a2 a3 .  .  .  .      S = 2 T; needs T in advance
                                 .  .  .  .  b0 b1 b2 b3
                                 .  .  .  .  c0 c1 c2 c3

    grouped [2, 1]               a0 .  a1 .  a2 .  a3 .  .  .  .  .       S = T K if flat inside, as here; T times the
                                 .  b0 .  b1 .  b2 .  b3 .  .  .  .       number of groups if parallel inside; needs T
                                 .  .  .  .  .  .  .  .  c0 c1 c2 c3      in advance

Cells without a code hold a special id: `start` before the codebook's first code, `pad` after it. The model prepends one
column of `start` as its first input; it is not part of the table. For sequences of unknown length, one more frame is
appended, whose cells hold `end`: for codebook 0 it is predicted (and counts in the loss), and the other codebooks
follow it.

If the specials have an `absent` id, a codebook may hold nothing in a frame: text_stream.py puts text and audio into one
sequence, and a frame of text has no audio codes. `absent` is in the place of a code; it is read and never predicted.

In all patterns but coarse_first and grouped, a prefix of the frames is within a prefix of the steps.
Source: the drawings are those of audiocraft's patterns (MusicGen, arXiv:2306.05284), without their leading column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ...configs.schema import Config, ConfigError
from .layouts import ArrangementConfig as ArrangementConfig
from .layouts import CoarseFirstConfig as CoarseFirstConfig
from .layouts import DelayConfig as DelayConfig
from .layouts import FlatConfig as FlatConfig
from .layouts import GroupedConfig as GroupedConfig
from .layouts import ParallelConfig as ParallelConfig
from .layouts import PartialFlatConfig as PartialFlatConfig
from .layouts import UnrolledConfig as UnrolledConfig
from .layouts import layout_of
from .step_table import StepTable

UNKNOWN_LENGTH = 1 << 40
"""Placeholder length of a row that has not ended yet."""


class SpecialsConfig(Config):
    """Special ids: the V codes of a codebook are 0 to V - 1, and these ids are V plus the numbers given here.

    With the defaults the three are distinct. presets.py lists those of other projects.
    """

    start: int = Field(default=1, ge=0, le=7)
    """The start id is V plus this number."""
    pad: int = Field(default=2, ge=0, le=7)
    """The pad id is V plus this number."""
    end: int = Field(default=0, ge=0, le=7)
    """The end id is V plus this number. If it is not 0, codebook 0 has outputs between its codes and its end that are
    never sampled."""
    before: Literal["start", "pad"] = "start"
    """Special id of the cells before a codebook's first code."""
    after: Literal["pad", "start", "end"] = "pad"
    """Special id of all other cells without a code."""
    absent: int | None = Field(default=None, ge=0, le=7)
    """For an lm with a text_stream: the absent id is V plus this number, which may be that of start or pad; null: the
    first number that is free."""

    @property
    def with_absent(self) -> SpecialsConfig:
        """The same with an absent id."""
        if self.absent is not None:
            return self
        return self.model_copy(update={"absent": max(self.start, self.pad, self.end) + 1})


@dataclass(frozen=True)
class Arranged:
    """Codes in pattern order."""

    ids: Tensor
    """[B, K, S] long: codes and special ids."""
    mask: Tensor
    """[B, K, S] bool, True where the model predicts the id: every code once, but none of a given frame, and the end of
    codebook 0."""


class CodebookPattern:
    """The pattern of one config for K codebooks; see the drawings above.

    Raises:
        ConfigError: a list does not fit K codebooks, or variable_length with a pattern that needs T in advance.
    """

    def __init__(
        self,
        config: ArrangementConfig,
        cardinalities: Sequence[int],
        variable_length: bool = False,
        specials: SpecialsConfig | None = None,
    ):
        specials = specials or SpecialsConfig()
        K = len(cardinalities)
        self.config = config
        self.cardinalities = tuple(cardinalities)
        self.num_codebooks = K
        self.variable_length = variable_length
        self.flatten_first = config.flatten_first if isinstance(config, DelayConfig) else 0
        self.layout = layout_of(config, K)
        self.needs_length = any(self.layout.spans)
        """Whether the steps depend on the number of frames (coarse_first, grouped)."""
        if self.needs_length and variable_length:
            raise ConfigError(f"arrangement {config.kind} needs a known number of frames; set variable_length: false")
        if variable_length and specials.start == specials.end:
            raise ConfigError(
                f"specials: start and end are both {specials.end}; they must differ when variable_length is true"
            )
        if specials.absent is not None and specials.absent == specials.end:
            raise ConfigError(f"specials: absent and end are both {specials.end}; they must differ")
        # With absent ids the end is counted, so that the audio channels alone have the same ids (text_stream.py).
        has_end = variable_length or specials.after == "end" or specials.absent is not None
        self.num_specials = max(specials.start, specials.pad, specials.end if has_end else 0, specials.absent or 0) + 1
        self.end_ids = tuple(V + specials.end for V in cardinalities)
        self.start_ids = tuple(V + specials.start for V in cardinalities)
        self.pad_ids = tuple(V + specials.pad for V in cardinalities)
        self.absent_ids = None if specials.absent is None else tuple(V + specials.absent for V in cardinalities)
        """The id of each codebook that stands for no code; None: every frame has a code of every codebook."""
        fills = {"start": self.start_ids, "pad": self.pad_ids, "end": self.end_ids}
        placing = [list(range(K)), self.layout.spans, self.layout.strides, self.layout.offsets]
        absent = [] if self.absent_ids is None else [self.absent_ids]
        self._constants = torch.tensor(
            [*placing, fills[specials.before], fills[specials.after], self.end_ids, *absent],
            dtype=torch.long,
            device="cpu",
        ).unsqueeze(-1)
        self._on_device: dict[torch.device, Tensor] = {}
        self._beginning = torch.tensor(self.layout.beginning, dtype=torch.long, device="cpu").view(-1, K).T
        self._beginning_on_device: dict[torch.device, Tensor] = {}

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """Number of input ids per codebook: its codes and the special ids."""
        return tuple(V + self.num_specials for V in self.cardinalities)

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Number of output ids per codebook: its codes, and the end for codebook 0 if lengths vary."""
        first = self.end_ids[0] + 1 if self.variable_length else self.cardinalities[0]
        return (first, *self.cardinalities[1:])

    @property
    def max_delay(self) -> int:
        """Steps from the first cell of a frame to its last; ValueError if that depends on the number of frames."""
        if self.needs_length:
            raise ValueError(f"arrangement {self.config.kind}: max_delay depends on the number of frames")
        body = max(self.layout.offsets) - min(self.layout.offsets)
        return max(body, self.num_codebooks - 1) if self.flatten_first else body

    # The table

    def table(self, num_frames: int) -> Tensor:
        """The pattern as drawn: long [K, S], the frame index in each cell or -1."""
        frames = self._frames_at(torch.arange(self.num_steps(num_frames)), num_frames)
        return torch.where(frames < num_frames, frames, -1)

    def num_steps(self, num_frames: int) -> int:
        """S for T frames (an end frame counts as a frame)."""
        if num_frames < 1:
            return 0
        if self.layout.beginning:
            return int(self.steps_of(torch.tensor([num_frames - 1])).max()) + 1
        layout, last = self.layout, num_frames - 1 - self.flatten_first
        if last < 0:
            return num_frames * self.num_codebooks
        ends = zip(layout.spans, layout.strides, layout.offsets, strict=True)
        body = max(span * num_frames + stride * last + offset for span, stride, offset in ends) + 1
        return self.flatten_first * self.num_codebooks + body

    def steps_of(self, frames: Tensor, num_frames: int | Tensor | None = None) -> Tensor:
        """The steps at which frames are placed.

        Args:
            frames: long [*, T] frame indices.
            num_frames: frames of the whole sequence, for a pattern that `needs_length` (an int, or a tensor that
                broadcasts to [*, 1, T]).
        Returns:
            long [*, K, T]: the step of each codebook's code of each frame.
        """
        book, span, stride, offset = self._tensors(frames.device)[:4]
        frames = frames.unsqueeze(-2)
        if self.needs_length:
            return span * self._known_total(num_frames, frames) + stride * frames + offset
        if self.layout.beginning:
            begun = self._beginning_of(frames.device)  # [K, R]
            found = frames.unsqueeze(-1) == begun.unsqueeze(-2)  # [*, K, T, R]
            return torch.where(found.any(-1), found.to(torch.uint8).argmax(-1), stride * frames + offset)
        K, F = self.num_codebooks, self.flatten_first
        return torch.where(frames < F, frames * K + book, F * K + (frames - F) * stride + offset)

    def cell_frames(self, step: int | Tensor, num_frames: int | None = None) -> Tensor:
        """For the decode loop: the frame of each codebook at one step, long [K], -1 for cells that never hold a code.

        Without num_frames the sequence has no last frame.
        """
        frames = self._frames_at(torch.as_tensor(step).reshape(1), num_frames).squeeze(-1)
        return frames if num_frames is None else torch.where(frames < num_frames, frames, -1)

    def known(self, step: int | Tensor, num_frames: int | None = None) -> Tensor:
        """bool [K]: which codebooks have a code in this step; the others are filled (see `forced_ids`)."""
        return self.cell_frames(step, num_frames) >= 0

    def forced_ids(self, step: int | Tensor, lengths: Tensor) -> Tensor:
        """For the decode loop: the ids of a step that the pattern determines.

        Args:
            step: the step.
            lengths: [B] long, frames of each row; UNKNOWN_LENGTH while codebook 0 has not ended.
        Returns:
            [B, K] long: the special id of the cell, or -1 where the model chooses a code (for codebook 0 also the end,
            which sets the row's length to `cell_frames(step)[0]`).
        """
        steps = torch.as_tensor(step, device=lengths.device).reshape(1)
        frames, fill = self._frames_and_fill(steps, lengths[:, None, None])
        return torch.where((frames >= 0) & (frames < lengths[:, None, None]), -1, fill).squeeze(-1)

    def step_table(self, num_steps: int, device: torch.device | str) -> StepTable | None:
        """`forced_ids` and `current_frames` of steps 0 .. num_steps - 1; None if the pattern `needs_length`."""
        if self.needs_length:
            return None
        steps = torch.arange(num_steps + 1, device=device)
        unknown = torch.full((1, 1, 1), UNKNOWN_LENGTH, device=device)
        frames, fills = (x[0] for x in self._frames_and_fill(steps[:num_steps], unknown))
        after, end = self._tensors(steps.device)[5:7]
        return StepTable(
            cells=frames,
            fills=fills.masked_fill(frames >= 0, -1),
            after=after,
            end=end if self.variable_length else None,
            current=self.current_frames(steps),
        )

    def current_frames(self, steps: Tensor, num_frames: int | Tensor | None = None) -> Tensor:
        """long, like steps [*, S]: the frame that a step predicts, that of its most advanced codebook. It determines
        the step's position on an image grid.

        If groups are in sequence, each group runs through the frames again.
        """
        if self.needs_length:
            span, stride, offset = self._tensors(steps.device)[1:4]
            total = self._known_total(num_frames, steps)[..., None]
            frames = (steps.unsqueeze(-2) - span * total - offset) // stride
            begun = (frames >= 0) & (frames < total)
            return torch.where(begun, frames + span * total, 0).amax(-2) % total[..., 0]  # of the last group begun
        if self.layout.beginning:
            first = self._beginning_of(steps.device).amax(0).cummax(0).values
            later = (steps - min(self.layout.offsets)) // self.layout.strides[0]
            return torch.where(steps < len(first), first[steps.clamp(0, len(first) - 1)], later)
        head = self.flatten_first * self.num_codebooks
        begun = (steps - head - min(self.layout.offsets)).clamp(min=0) // self.layout.strides[0]
        return torch.where(steps < head, steps // self.num_codebooks, self.flatten_first + begun)

    # Codes to steps and back

    def arrange(self, codes: Tensor, lengths: Tensor | None = None, given: Tensor | None = None) -> Arranged:
        """Arrange codes in pattern order.

        Args:
            codes: [B, K, T] long, `absent_ids` included; codes beyond a row's length are ignored.
            lengths: [B] long, frames of each row, at least 1; None: all T.
            given: [B] long, leading frames of each row that are not predicted; None: 0.
        Returns:
            Arranged with S = num_steps(T), or num_steps(T + 1) if variable_length. A row's ids and mask do not depend
            on T: a row padded to a larger T only gets more pad.
        Raises:
            ValueError: wrong number of codebooks, a code out of range, a length below 1 or above T, more given frames
                than there are.
        """
        lengths = self.check(codes, lengths)
        T = codes.shape[2]
        steps = torch.arange(self.num_steps(T + self.variable_length), device=codes.device)
        ends = lengths[:, None, None]
        frames, fill = self._frames_and_fill(steps, ends)
        real = (frames >= 0) & (frames < ends)
        index = frames.clamp(0, T - 1).expand(*codes.shape[:2], len(steps))
        mask = real
        if self.variable_length:
            book = self._tensors(codes.device)[0]
            mask = real | ((frames == ends) & (book == 0))
        ids = torch.where(real, codes.gather(2, index), fill)
        if self.absent_ids is not None:
            mask = mask & ~(real & (ids == self._tensors(codes.device)[7]))
        if given is not None:
            mask = mask & (frames >= check_given(given, lengths)[:, None, None])
        return Arranged(ids=ids, mask=mask)

    def undo(
        self,
        arranged: Tensor,
        num_frames: int,
        lengths: Tensor | None = None,
        codebooks: Sequence[int] | None = None,
    ) -> Tensor:
        """Map ids or logits in pattern order back to frames.

        Args:
            arranged: [B, K, S] or [B, K, S, V]; S may be larger than needed.
            num_frames: T.
            lengths: [B] long, for a pattern that `needs_length` if rows differ in length; the output beyond a row's
                length is undefined.
            codebooks: the codebook of each of J rows [B, J, S] or [B, J, S, V] in the place of K; None: one row each.
        Returns:
            [B, K, T] or [B, K, T, V].
        Raises:
            ValueError: wrong number of codebooks, or fewer steps than T frames take.
        """
        B, J, S = arranged.shape[:3]
        self._check_codebooks(J if codebooks is None else self.num_codebooks)
        if self.num_steps(num_frames) > S:
            raise ValueError(f"{num_frames} frames take {self.num_steps(num_frames)} steps, but {S} were given")
        frames = torch.arange(num_frames, device=arranged.device)
        if self.needs_length and lengths is not None:
            frames = torch.minimum(frames, lengths[:, None] - 1)
            steps = self.steps_of(frames, lengths[:, None, None])
        else:
            steps = self.steps_of(frames, num_frames).expand(B, self.num_codebooks, num_frames)
        if codebooks is not None:
            steps = steps[:, list(codebooks)]
        if arranged.dim() == 4:
            return arranged.gather(2, steps[..., None].expand(B, J, num_frames, arranged.shape[3]))
        return arranged.gather(2, steps)

    def check(self, codes: Tensor, lengths: Tensor | None) -> Tensor:
        """Raise ValueError unless codes [B, K, T] and lengths [B] fit (ranges: on the CPU only); returns lengths, all T
        for None."""
        if codes.dim() != 3 or codes.dtype != torch.long:
            raise ValueError(f"codes must be long [B, K, T], found {codes.dtype} {list(codes.shape)}")
        B, K, T = codes.shape
        self._check_codebooks(K)
        if B < 1 or T < 1:
            raise ValueError(f"codes {list(codes.shape)} are empty; at least one row of one frame is needed")
        if lengths is None:
            lengths = torch.full((B,), T, dtype=torch.long, device=codes.device)
            valid = codes
        else:
            if lengths.shape != (B,) or lengths.dtype != torch.long:
                raise ValueError(
                    f"lengths must be long [{B}], one for each row, found {lengths.dtype} {list(lengths.shape)}"
                )
            valid = codes.masked_fill(torch.arange(T, device=codes.device) >= lengths[:, None, None], 0)
        # On other devices reading the values would synchronize; shards check their codes when they are read.
        if codes.device.type == "cpu":
            shortest, longest = (int(value) for value in lengths.aminmax())
            if shortest < 1 or longest > T:
                raise ValueError(f"lengths must be 1 to the {T} frames given, found {shortest} to {longest}")
            for k, V in enumerate(self.cardinalities):
                codes_k = valid[:, k]
                if self.absent_ids is not None:
                    codes_k = codes_k.masked_fill(codes_k == self.absent_ids[k], 0)
                low, high = (int(value) for value in codes_k.aminmax())
                if low < 0 or high >= V:
                    raise ValueError(f"codebook {k} holds codes 0 to {V - 1}, found {low if low < 0 else high}")
        return lengths

    # Private

    def _frames_and_fill(self, steps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (beyond the last one too) and the special id of each cell without a code, both [B or 1, K, S]."""
        before, after, end = self._tensors(steps.device)[4:7]
        frames = self._frames_at(steps, lengths)
        if frames.dim() == 2:
            frames = frames.unsqueeze(0)
        zero = torch.zeros(1, dtype=torch.long, device=steps.device)
        first = self.steps_of(zero, lengths if self.needs_length else None)
        fill = torch.where(steps < first, before, after)
        if fill.dim() == 2:
            fill = fill.unsqueeze(0)
        if self.variable_length:
            fill = torch.where(frames == lengths, end, fill)
            fill = torch.where(frames > lengths, after, fill)
        return frames, fill

    def _frames_at(self, steps: Tensor, num_frames: int | Tensor | None) -> Tensor:
        """Frame in each cell of the unbounded sequence, -1 for none: steps [S] -> [K, S], or [B, K, S] if it depends on
        the length of the row (num_frames [B, 1, 1])."""
        book, span, stride, offset = self._tensors(steps.device)[:4]
        K, F = self.num_codebooks, self.flatten_first
        ahead = steps - F * K - offset
        if self.needs_length:
            total = self._known_total(num_frames, steps)
            ahead = ahead - span * total
            return torch.where((ahead >= 0) & (ahead % stride == 0) & (ahead < stride * total), ahead // stride, -1)
        body = torch.where((ahead >= 0) & (ahead % stride == 0), F + ahead // stride, -1)
        if self.layout.beginning:
            begun = self._beginning_of(steps.device)
            return torch.where(steps < begun.shape[1], begun[:, steps.clamp(0, begun.shape[1] - 1)], body)
        if not F:
            return body
        return torch.where(steps < F * K, torch.where(steps % K == book, steps // K, -1), body)

    def _beginning_of(self, device: torch.device) -> Tensor:
        """[K, R]: the frame of each codebook in the steps that `AffineLayout` lists one by one, or -1."""
        if device not in self._beginning_on_device:
            self._beginning_on_device[device] = self._beginning.to(device)
        return self._beginning_on_device[device]

    def _known_total(self, num_frames: int | Tensor | None, like: Tensor) -> Tensor:
        if num_frames is None:
            raise ValueError(f"arrangement {self.config.kind} needs the number of frames")
        return torch.as_tensor(num_frames, device=like.device)

    def _tensors(self, device: torch.device) -> Tensor:
        """[7 or 8, K, 1]: codebook index, span, stride, offset (see `AffineLayout`), id before, id after, end id, and
        the absent id if there is one."""
        if device not in self._on_device:
            self._on_device[device] = self._constants.to(device)
        return self._on_device[device]

    def _check_codebooks(self, K: int) -> None:
        if self.num_codebooks != K:
            raise ValueError(
                f"codes have {K} codebooks but the model has {self.num_codebooks}; encode with the model's tokenizer"
            )


def check_given(given: Tensor, lengths: Tensor) -> Tensor:
    """The numbers of given frames; ValueError unless they are long [B], from 0 to lengths [B] (on the CPU only)."""
    if given.shape != lengths.shape or given.dtype != torch.long:
        raise ValueError(
            f"given must be long [{len(lengths)}], one for each row, found {given.dtype} {list(given.shape)}"
        )
    if given.device.type == "cpu" and not bool(((given >= 0) & (given <= lengths)).all()):
        raise ValueError(f"given must be 0 to the frames of a row, found {given.tolist()} of {lengths.tolist()}")
    return given
