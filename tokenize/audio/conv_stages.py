"""Stages of a stack of convolutions: in windows or, wherever that is possible, with a state.

A window computes its context again: up to 10 frames on each side of a chunk of 32, or several frames for each frame of
a short chunk. With a state each convolution keeps the last steps of its padded input (`Carried`, layers/row_conv.py),
and every step of every layer is computed once. If convolutions look ahead, the results of a block are those of some
frames before, `late`; that needs zeros as padding, and blocks that are not eager.

A stack is cut where that saves time, as here a decoder with chunks of one frame:

    rows a frame     2                          16                      96 ... 1920
    a block          4 frames, eager            1 frame                 1 frame
    a call           all blocks that are there: weights are read        one block: its activations stay in the cache
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from math import gcd
from typing import Any, NamedTuple

from torch import Tensor

from ..layers.masked_conv import ConvStack, PaddedConv, PaddedTranspose, Residual
from .streaming import TOGETHER, StreamingLayer, blocks_per_call, frames_per_call, window_stage

Change = Callable[[Tensor], Tensor]
FEW_ROWS = 64
"""With fewer rows a frame, reading the weights takes longer than reading the frames."""
NUMBERS = 2**17
"""Of a layer's activations in a block, at most: half a MiB stays in a core's cache."""


def _same(x: Tensor) -> Tensor:
    return x


def conv_stages(stack: ConvStack, chunk: int, before: Change = _same, after: Change = _same) -> list[StreamingLayer]:
    """Stages of a stack in a network with chunks of `chunk` frames. before: makes the stack's frames [B, T, r, C] of
    those that arrive. after: makes the results of those of the stack."""
    parts = _parts(stack, chunk)
    if not parts or not all(_has_state(part) for part in parts):
        return [window_stage(lambda x, mask: after(stack(before(x), mask)), stack.reach_back, stack.reach_ahead)]
    return [
        _stage(part, before if part is parts[0] else _same, after if part is parts[-1] else _same) for part in parts
    ]


class _Part(NamedTuple):
    stack: ConvStack
    frames: int
    eager: bool
    blocks: int


def _has_state(part: _Part) -> bool:
    fits = part.stack.carries(1 if part.eager else part.frames)
    return fits and not (part.eager and part.stack.late)


def _stage(part: _Part, before: Change, after: Change) -> StreamingLayer:
    stack = part.stack
    late = stack.late

    def run(x: Tensor, mask: Tensor, state: Any) -> tuple[Tensor, Any]:
        return after(stack(before(x), mask)), None

    def extend(x: Tensor, mask: Tensor, state: Any) -> tuple[Tensor, Any]:
        found, state = stack.extend_signal(before(x), mask, state, x.shape[1] // part.frames)
        return after(found), state

    def extend_late(x: Tensor, mask: Tensor, state: Any) -> tuple[Tensor, Any]:
        found, state = stack.extend_late(before(x), mask, state)
        return after(found), state

    windows = StreamingLayer(run, stack.reach_back, stack.reach_ahead)
    if late:
        return replace(windows, extend=extend_late, frames=part.frames, late=late)
    return replace(windows, extend=extend, frames=part.frames, eager=part.eager, blocks=part.blocks)


class _Load(NamedTuple):
    places: int
    """Steps a frame of a layer's input."""
    rows: int
    """Rows a frame of its products."""
    numbers: int
    """Numbers a frame of its input or result."""

    def kind(self, chunk: int) -> tuple[bool, bool]:
        """Whether it is eager, and whether several blocks can share one reading of its weights, which takes longer than
        that of its frames."""
        frames, eager = frames_per_call(chunk, self.rows)
        return eager, self.rows < FEW_ROWS and 2 * frames <= TOGETHER


def _parts(stack: ConvStack, chunk: int) -> list[_Part]:
    loads = _loads(stack)
    parts, first = [], 0
    for (eager, several), found in groupby(loads, lambda load: load.kind(chunk)):
        group = list(found)
        fewest = min(load.rows for load in group)
        frames = frames_per_call(chunk, fewest)[0]
        if fewest >= FEW_ROWS:  # a part of the chunk, without a rest that would wait for the next one
            most = max(1, NUMBERS // max(load.numbers for load in group))
            frames = max(size for size in range(1, min(most, chunk) + 1) if chunk % size == 0)
        end = first + len(group)
        part = stack if len(group) == len(loads) else stack.part(first, end, group[0].places)
        numbers = gcd(*(load.rows for load in group)) * _common_width(part)
        parts.append(_Part(part, frames, eager, blocks_per_call(frames, numbers) if several else 1))
        first = end
    return parts


def _common_width(stack: ConvStack) -> int:
    """A divisor of the channels of all tensors."""
    layers = (layer for layer in stack.modules() if isinstance(layer, PaddedConv | PaddedTranspose))
    return gcd(*(width for layer in layers for width in (layer.inputs, layer.outputs)))


def _loads(stack: ConvStack) -> list[_Load]:
    """Of each layer; an activation has that of the layer with which it runs, the next one or else the last."""
    loads: list[_Load] = []
    waiting, places = 0, stack.places
    for layer in stack:
        before, places = places, places * int(layer.up) // int(layer.down)  # pyright: ignore[reportArgumentType]
        waiting += 1
        if isinstance(layer, PaddedConv | PaddedTranspose | Residual):
            numbers = max(before * layer.inputs, places * layer.outputs)
            loads += [_Load(before, min(before, places), numbers)] * waiting
            waiting = 0
    return loads + loads[-1:] * waiting
