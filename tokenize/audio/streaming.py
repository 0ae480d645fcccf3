"""Networks over time as chains of stages that can run at once, in windows or as a stream with the same result.

A stage is either windowed or stateful. A convolution needs a few frames of context on both sides: it runs in windows of
one fixed shape, whose context makes the middle equal to a pass over everything. An LSTM or sliding-window attention
needs unbounded or very long left context: it runs chunk by chunk and passes a state on; so does a causal stack of
convolutions whose left context is long. In a chain, each stage needs only its own context.

    frames ──► stage 0 ──► stage 1 ──► ... ──► results           each split at multiples of `chunk`

    frames      0 ......... a ........ a+chunk ......... T
    window           [ back | chunk          | ahead ]
    mask             True on frames in 0 .. T-1, zeros outside

A signal may end inside its last frame: `tail` marks the samples of that frame that it has, and masks are then of
samples, [B, T, hop].

Kernels can round differently for different shapes, and a near-tie then changes a code. Here every call has the shape
[1, back + chunk + ahead, ...], where the chunk depends on the stage and its start at most, whatever the batch and
however the frames arrive. Encoding a whole signal is a stream
whose frames arrive all at once, so it equals any other stream bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

StageRun = Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class StreamingLayer:
    """One stage of a network over frames."""

    run: StageRun
    """(frames [B, T, ...], mask [B, T] or [B, T, hop], state) -> (results [B, T, ...], state). The state is None at the
    first frame, and always for stateless stages. Values at masked frames do not affect other frames."""
    back: int = 0
    """Frames before t that result t depends on, beyond the state."""
    ahead: int = 0
    """Frames after t that result t depends on."""
    memory: bool = False
    """Whether the stage is stateful."""
    grows: bool = False
    """Whether later chunks are larger, `chunk_at`: less work per frame, once there is audio to play in the meantime."""
    block: int = 1
    """Frames that depend on each other, in blocks from the first frame on: a chunk must be a multiple."""
    numbered: bool = False
    """Of a stateless stage: whether the state is the number of the first frame (None: 0), less than 0 before the
    signal."""


def window_stage(run: Callable[[Tensor, Tensor], Tensor], back: int, ahead: int) -> StreamingLayer:
    """A stateless stage from a function (frames, mask) -> results."""
    return StreamingLayer(lambda frames, mask, state: (run(frames, mask), None), back, ahead)


def run_stages(stages: Sequence[StreamingLayer], frames: Tensor, mask: Tensor) -> Tensor:
    """Process all frames [B, T, ...] at once; mask [B, T] or [B, T, hop]. Equal to `StagesStream` up to rounding."""
    for stage in stages:
        frames, _ = stage.run(frames, mask, None)
    return frames


def chunk_at(start: int, chunk: int) -> int:
    """Frames of the chunk that starts at a frame, for a stage that grows: four chunks, then double, then fourfold ones.
    They arrive in time wherever generation takes at most seven tenths of the time that the audio plays."""
    done = start // chunk
    return chunk if done < 4 else 2 * chunk if done < 8 else 4 * chunk


@dataclass(frozen=True)
class Window:
    """Number of output frames per call, and of context frames on both sides."""

    chunk: int
    back: int
    ahead: int

    @property
    def size(self) -> int:
        """Input frames per call."""
        return self.back + self.chunk + self.ahead

    @property
    def needed(self) -> int:
        """Input frames from the chunk's start on that a call needs."""
        return self.chunk + self.ahead

    def cut(
        self, frames: Tensor, start: int, first: int, total: int | None, fill: float, tail: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cut the window whose chunk starts at frame `start`.

        Args:
            frames: [t, ...], frames first .. first + t - 1.
            total: number of frames of the whole signal, None while unknown (then all given frames are valid).
            fill: value of frames outside the signal.
            tail: [hop] bool, the samples of frame total - 1 that the signal has; None: all.
        Returns:
            [1, size, ...] and its mask [1, size], or [1, size, hop] with a tail.
        """
        end = first + frames.shape[0] if total is None else total
        low, high = start - self.back, start + self.chunk + self.ahead
        inside_low, inside_high = max(low, 0), min(high, end)
        window = frames.new_full((1, self.size, *frames.shape[1:]), fill)
        mask = torch.zeros(1, self.size, dtype=torch.bool, device=frames.device)
        window[0, inside_low - low : inside_high - low] = frames[inside_low - first : inside_high - first]
        mask[0, inside_low - low : inside_high - low] = True
        if tail is not None:
            mask = mask[:, :, None].repeat(1, 1, len(tail))
            if low < end <= high:
                mask[0, end - 1 - low] = tail
        return window, mask


class StageStream:
    """Runs one stage on frames that arrive in blocks of any size; results come in chunks."""

    def __init__(self, stage: StreamingLayer, chunk: int, fill: float = 0.0):
        """`fill` is the value of frames outside the signal."""
        self.stage, self.chunk, self.fill = stage, chunk, fill
        self.state: Any = None
        self.frames: Tensor | None = None  # [t, ...], frames still needed
        self.first = 0  # index of self.frames[0] in the signal
        self.start = 0  # frames already processed

    @property
    def window(self) -> Window:
        """The window of the next chunk."""
        chunk = chunk_at(self.start, self.chunk) if self.stage.grows else self.chunk
        return Window(chunk, self.stage.back, self.stage.ahead)

    def push(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Add blocks of frames [t, ...]; returns the results [chunk, ...] that are ready."""
        self._add(blocks)
        ready = []
        while self.frames is not None and self.first + len(self.frames) >= self.start + self.window.needed:
            ready.append(self._next(self.frames, self.window.chunk, None))
        return ready

    def finish(self, blocks: Sequence[Tensor] = (), tail: Tensor | None = None) -> list[Tensor]:
        """Add the last blocks and end the stream; returns the remaining results, of which the last can be shorter.
        tail: [hop] bool, the samples of the last frame that the signal has; None: all."""
        self._add(blocks)
        ready = []
        if self.frames is not None:
            total = self.first + len(self.frames)
            while self.start < total:
                ready.append(self._next(self.frames, min(self.window.chunk, total - self.start), total, tail))
        return ready

    def _add(self, blocks: Sequence[Tensor]) -> None:
        known = [] if self.frames is None else [self.frames]
        if known or blocks:
            self.frames = torch.cat([*known, *blocks])

    def _next(self, frames: Tensor, count: int, total: int | None, tail: Tensor | None = None) -> Tensor:
        place = self.window
        window, mask = place.cut(frames, self.start, self.first, total, self.fill, tail)
        state = self.start - place.back if self.stage.numbered else self.state
        results, self.state = self.stage.run(window, mask, state)
        self.start += place.chunk
        unneeded = max(0, self.start - place.back - self.first)  # bounds the memory
        self.frames, self.first = frames[unneeded:], self.first + unneeded
        return results[0, place.back : place.back + count]


class StagesStream:
    """Runs chained stages on frames that arrive in blocks of any size."""

    def __init__(self, stages: Sequence[StreamingLayer], chunk: int, fill: float = 0.0):
        """`fill` is the value of frames outside the signal for the first stage; later stages use zeros."""
        self.streams = [StageStream(stage, chunk, 0.0 if number else fill) for number, stage in enumerate(stages)]

    @property
    def delay(self) -> int:
        """Number of frames needed before the first results are ready."""
        needed = 1
        for stream in reversed(self.streams):
            chunk = stream.window.chunk
            needed = -(-needed // chunk) * chunk + stream.window.ahead
        return needed

    def push(self, frames: Tensor) -> list[Tensor]:
        """Add frames [t, ...]; returns the results that are ready, in order."""
        blocks = [frames]
        for stream in self.streams:
            blocks = stream.push(blocks)
        return blocks

    def finish(self, last: Tensor | None = None, tail: Tensor | None = None) -> list[Tensor]:
        """Add the last frames and end the stream; returns the remaining results. tail: see StageStream.finish."""
        blocks = [] if last is None else [last]
        for stream in self.streams:
            blocks = stream.finish(blocks, tail)
        return blocks

    def run(self, frames: Tensor, tail: Tensor | None = None) -> Tensor:
        """Process a whole signal: frames [T, ...], at least one -> results [T, ...]. tail: see StageStream.finish."""
        return torch.cat(self.finish(frames, tail))
