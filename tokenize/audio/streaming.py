"""Networks over time as chains of stages that can run at once, in windows or as a stream with the same result.

A stage is either windowed or stateful. A convolution needs a few frames of context on both sides: it runs in windows of
one fixed shape, whose context makes the middle equal to a pass over everything. What needs no later frames runs chunk
by chunk and passes a state on: causal convolutions, an LSTM, sliding-window attention. In a chain, each stage needs
only its own context.

    frames ──► stage 0 ──► stage 1 ──► ... ──► results           each split at multiples of `chunk`

    frames      0 ......... a ........ a+chunk ......... T
    window           [ back | chunk          | ahead ]
    mask             True on frames in 0 .. T-1, zeros outside

A signal may end inside its last frame: `tail` marks the samples of that frame that it has, and masks are then of
samples, [B, T, hop].

Kernels can round differently for different shapes, and a near-tie then changes a code. So every call has one shape:
that of a window, [1, back + chunk + ahead, ...], whose chunk depends on the stage and its start at most, or that of a
block, whatever the batch and however the frames arrive. Encoding a whole signal is a stream whose frames arrive all at
once, so it equals any other stream bit for bit. Several blocks share a call only where each keeps its bits
(layers/row_products.py).

A layer whose products have few rows takes almost as long for one frame as for several, because its weights are read
each time. An eager stage gains from frames that are there without waiting for others: each frame has a place in a block
of fixed shape, and a call computes the whole block, of which only the new frames count.

    block of 4 frames      [ 0 1 2 3 ]                     all at once
                           [ 0 . . . ]  [ . 1 2 . ]  ...   as they arrive: a row's result depends on no other row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..layers.row_products import ALIGNMENT

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
    extend: StageRun | None = None
    """How a stream runs the stage, where it is not `run`: with a state and without `back` and `ahead`, on one signal.
    A call has one block of frames or several. The mask [1, t] or [1, t, hop], on the CPU, marks those that are new;
    they follow those of the call before. The state given must not be used again."""
    frames: int = 1
    """Frames of a block of `extend`."""
    eager: bool = False
    """Whether `extend` runs as soon as one frame is there. Otherwise all frames of a block are new, except at the
    signal's end."""
    late: int = 0
    """Frames by which the results of `extend` are late: those of a call are of the frames as many before. Calls without
    a new frame, after the signal's end, return the last ones."""
    blocks: int = 1
    """Most blocks of a call of `extend`; several are new as a whole, but for the last one at the signal's end. Results
    do not depend on their number."""

    def map_runs(self, change: Callable[[StageRun], StageRun]) -> StreamingLayer:
        """The stage with `run` and `extend` changed alike."""
        extend = None if self.extend is None else change(self.extend)
        return replace(self, run=change(self.run), extend=extend)


def window_stage(run: Callable[[Tensor, Tensor], Tensor], back: int, ahead: int) -> StreamingLayer:
    """A stateless stage from a function (frames, mask) -> results."""
    return StreamingLayer(lambda frames, mask, state: (run(frames, mask), None), back, ahead)


ROWS = 8
"""Least number of rows of a matrix product with weights in memory; fewer take almost as long."""
TOGETHER = 64
"""Frames of a call at most, where several blocks share one reading of the weights."""
PIECE = 256
"""Frames that run through all stages together, which bounds the memory between stages."""


def frames_per_call(chunk: int, rows: int) -> tuple[int, bool]:
    """Frames of a block of a layer with a state whose products have `rows` rows a frame, and whether it is eager."""
    return (chunk, False) if chunk * rows >= ROWS else (-(-ROWS // rows), True)


def blocks_per_call(frames: int, numbers: int) -> int:
    """Most blocks of `frames` frames of a call of layers whose weights take longer than their frames.

    numbers: divides the float32 numbers a frame of each of their tensors. Every block has to be as aligned in memory as
    one by itself.
    """
    return max(1, TOGETHER // frames) if frames * numbers * 4 % ALIGNMENT == 0 else 1


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

    def waits_for(self, count: int) -> int:
        """Frames needed before the first `count` results are ready."""
        return -(-count // self.window.chunk) * self.window.chunk + self.window.ahead

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


class BlockStream:
    """As StageStream, of a stage with `extend`."""

    def __init__(self, stage: StreamingLayer, fill: float = 0.0):
        """`fill` is the value of frames that are not there."""
        assert stage.extend is not None
        self.run, self.stage, self.fill = stage.extend, stage, fill
        self.state: Any = None
        self.frames: Tensor | None = None  # [t, ...], frames not processed yet
        self.start = 0  # frames already processed
        self.called = 0  # frames of all blocks so far, if results are late
        self.returned = 0  # frames whose results were returned

    def waits_for(self, count: int) -> int:
        """See StageStream.waits_for."""
        size = 1 if self.stage.eager else self.stage.frames
        return -(-(count + self.stage.late) // size) * size

    def push(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """See StageStream.push."""
        return self._process(blocks, last=False)

    def finish(self, blocks: Sequence[Tensor] = (), tail: Tensor | None = None) -> list[Tensor]:
        """See StageStream.finish."""
        return self._process(blocks, last=True, tail=tail)

    def _process(self, given: Sequence[Tensor], last: bool, tail: Tensor | None = None) -> list[Tensor]:
        known = [*([] if self.frames is None else [self.frames]), *given]
        if not known:
            return []
        frames = known[0] if len(known) == 1 else torch.cat(known)
        size, ready, done = self.stage.frames, [], 0
        while done < len(frames):
            place, left = self.start % size, len(frames) - done
            if place + left < size and not last and not self.stage.eager:
                break
            there = -(-left // size) if last else left // size
            blocks = max(1, min(self.stage.blocks, there)) if place == 0 else 1
            new = frames[done : done + blocks * size - place]
            done += len(new)
            ready.append(self._call(new, place, blocks * size, tail, last and done == len(frames)))
        while last and self.returned < self.start:
            ready.append(self._call(frames[:0], 0, size, tail, False))
        self.frames = frames[done:].clone()  # a view would keep all frames
        return ready

    def _call(self, new: Tensor, place: int, count: int, tail: Tensor | None, at_end: bool) -> Tensor:
        """Run blocks of `count` frames, with the new ones from `place` on."""
        inside = slice(place, place + len(new))
        if len(new) == count:
            same = new.is_contiguous() and new.data_ptr() % ALIGNMENT == 0
            block = (new if same else new.clone(memory_format=torch.contiguous_format))[None]
        else:
            block = new.new_full((1, count, *new.shape[1:]), self.fill)
            block[0, inside] = new
        mask = torch.zeros(1, count, dtype=torch.bool)  # on a GPU, reading it would wait for the results
        mask[0, inside] = True
        if tail is not None:
            mask = mask[:, :, None].repeat(1, 1, len(tail))
            if at_end:
                mask[0, inside.stop - 1] = tail.cpu()
        results, self.state = self.run(block, mask, self.state)
        self.start += len(new)
        late = self.stage.late
        if late:  # of the frames called - late .. called + count - late - 1, those of the signal
            inside = slice(max(0, late - self.called), min(count, self.start + late - self.called))
            self.called += count
        self.returned += max(0, inside.stop - inside.start)
        return results[0, inside]


class StagesStream:
    """Runs chained stages on frames that arrive in blocks of any size."""

    def __init__(self, stages: Sequence[StreamingLayer], chunk: int, fill: float = 0.0):
        """`fill` is the value of frames outside the signal for the first stage; later stages use zeros."""
        fills = [fill, *[0.0] * (len(stages) - 1)]
        self.streams = [
            StageStream(stage, chunk, outside) if stage.extend is None else BlockStream(stage, outside)
            for stage, outside in zip(stages, fills, strict=True)
        ]

    @property
    def delay(self) -> int:
        """Number of frames needed before the first results are ready."""
        needed = 1
        for stream in reversed(self.streams):
            needed = stream.waits_for(needed)
        return needed

    def push(self, frames: Tensor) -> list[Tensor]:
        """Add frames [t, ...]; returns the results that are ready, in order."""
        results = []
        for piece in frames.split(PIECE):
            blocks = [piece]
            for stream in self.streams:
                blocks = stream.push(blocks)
            results += blocks
        return results

    def finish(self, last: Tensor | None = None, tail: Tensor | None = None) -> list[Tensor]:
        """Add the last frames and end the stream; returns the remaining results. tail: see StageStream.finish."""
        blocks = [] if last is None else [last]
        for stream in self.streams:
            blocks = stream.finish(blocks, tail)
        return blocks

    def run(self, frames: Tensor, tail: Tensor | None = None) -> Tensor:
        """Process a whole signal: frames [T, ...], at least one -> results [T, ...]. tail: see StageStream.finish."""
        before = (len(frames) - 1) // PIECE * PIECE  # the last piece has at least one frame
        return torch.cat([*self.push(frames[:before]), *self.finish(frames[before:], tail)])
