"""Networks over time as stages, so that any of them runs whole, in windows or as a stream with the same result.

A stage is either a window or a memory. A convolution reads a few frames before and after its own: it runs in windows of
one fixed shape whose context makes the middle equal to running over everything (`sliding_windows.py`). A recurrence or
sliding
attention reads back without end, or so far that a window would be mostly context: it runs chunk after chunk and hands a
state on. Chained stages need only each its own context.

    frames ──► stage 0 ──► stage 1 ──► ... ──► results           each cut at the same multiples of `chunk`

Kernels may round differently for different shapes, and a near-tie then flips a code. Here every call has the shape
[1, back + chunk + ahead, ...], whoever else is in the batch and however the frames arrive. The whole is a stream whose
frames come all at once, hence equal to any other stream bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .sliding_windows import Window

StageRun = Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class StreamingLayer:
    """One step of a network over frames."""

    run: StageRun
    """(frames [B, T, ...], mask [B, T], state) -> (results [B, T, ...], state). The state is None at the first frame;
    a stage without memory hands None on. What stands at masked frames changes nothing elsewhere."""
    back: int = 0
    """Frames before t that result t depends on, beyond the state."""
    ahead: int = 0
    """Frames after t that result t depends on."""
    memory: bool = False
    """Whether it hands a state on."""


def window_stage(run: Callable[[Tensor, Tensor], Tensor], back: int, ahead: int) -> StreamingLayer:
    """A stage without memory, from (frames, mask) -> results."""
    return StreamingLayer(lambda frames, mask, state: (run(frames, mask), None), back, ahead)


def run_stages(stages: Sequence[StreamingLayer], frames: Tensor, mask: Tensor) -> Tensor:
    """All frames [B, T, ...] at once, for training; mask [B, T]. Equal to `StagesStream` up to rounding."""
    for stage in stages:
        frames, _ = stage.run(frames, mask, None)
    return frames


class StageStream:
    """One stage over frames that arrive in pieces; results come in chunks."""

    def __init__(self, stage: StreamingLayer, chunk: int, fill: float = 0.0):
        """`fill` is the value of frames that do not exist."""
        self.stage, self.fill = stage, fill
        self.window = Window(chunk, stage.back, stage.ahead)
        self.state: Any = None
        self.frames: Tensor | None = None  # [t, ...], those still needed
        self.first = 0  # number of self.frames[0] in the whole signal
        self.start = 0  # frames already worked on

    def push(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Add frames, [t, ...] each; returns the results [chunk, ...] that are ready."""
        known = [] if self.frames is None else [self.frames]
        if not known and not pieces:
            return []
        self.frames = torch.cat([*known, *pieces])
        ready = []
        while self.first + self.frames.shape[0] >= self.start + self.window.chunk + self.window.ahead:
            ready.append(self._next(self.frames, self.window.chunk, None))
        return ready

    def finish(self) -> list[Tensor]:
        """Say that no more frames come; returns the results that remain, the last one perhaps shorter."""
        ready = []
        if self.frames is not None:
            total = self.first + self.frames.shape[0]
            while self.start < total:
                ready.append(self._next(self.frames, min(self.window.chunk, total - self.start), total))
        return ready

    def _next(self, frames: Tensor, count: int, total: int | None) -> Tensor:
        window, mask = self.window.cut(frames, self.start, self.first, total, self.fill)
        results, self.state = self.stage.run(window, mask, self.state)
        self.start += self.window.chunk
        unneeded = max(0, self.start - self.window.back - self.first)  # memory stays constant in length
        self.frames, self.first = frames[unneeded:], self.first + unneeded
        return results[0, self.window.back : self.window.back + count]


class StagesStream:
    """Chained stages over frames that arrive in pieces."""

    def __init__(self, stages: Sequence[StreamingLayer], chunk: int, fill: float = 0.0):
        """`fill` is the value of frames that do not exist, for the first stage; later ones get zeros."""
        self.streams = [StageStream(stage, chunk, 0.0 if number else fill) for number, stage in enumerate(stages)]

    @property
    def delay(self) -> int:
        """Frames that must be there before the first results come."""
        needed = 1
        for stream in reversed(self.streams):
            chunk = stream.window.chunk
            needed = -(-needed // chunk) * chunk + stream.window.ahead
        return needed

    def push(self, frames: Tensor) -> list[Tensor]:
        """Add frames [t, ...]; returns the results that are ready, in order."""
        pieces = [frames]
        for stream in self.streams:
            pieces = stream.push(pieces)
        return pieces

    def finish(self) -> list[Tensor]:
        """Say that no more frames come; returns the results that remain."""
        pieces: list[Tensor] = []
        for stream in self.streams:
            pieces = stream.push(pieces) + stream.finish()
        return pieces

    def run(self, frames: Tensor) -> Tensor:
        """Everything: all frames [T, ...], at least one -> results [T, ...]."""
        return torch.cat(self.push(frames) + self.finish())
