"""Speech at another speed, for models with an aligned text: generates once at the model's own rate, scales the duration
of every unit, and generates again with these durations.

    speed 1.5      unit       h  ə  l  ˈO  .
                   frames     3  2  4   6  2        of the first pass
                   scaled     2  1  3   4  1        each end at (end / speed), but a unit that lasts keeps one frame

So the rate is what was asked for. Raising the odds of an advance instead hardly changes it at first, and then breaks
the speech: after a few frames the model is certain that a unit ends, or that it does not. The second pass costs as much
as the first.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...lm.models.causal import TokenLM
from ..requests.request import Request
from .loop import DecodeLoop


def with_pace(lm: TokenLM, request: Request) -> Request:
    """The request with the durations of its units if `speed` is set, unless they are given; otherwise unchanged."""
    speed, conditions = request.config.speed, request.conditions
    if speed == 1 or lm.conditions.aligned is None or conditions.aligned_frames is not None:
        return request
    assert conditions.aligned is not None
    own = request.config.model_copy(update={"speed": 1.0})
    longest = math.ceil(request.length.max_frames * max(speed, 1.0))
    first = DecodeLoop(lm, replace(request, config=own, length=replace(request.length, max_frames=longest))).run()
    units = first.units
    assert units is not None
    L = conditions.aligned.shape[1]
    spoken = torch.stack([torch.bincount(row[row >= 0], minlength=L)[:L] for row in units])
    beyond = torch.arange(L) > units.amax(dim=1, keepdim=True)
    spoken[beyond & ~first.ended[:, None]] = 1  # of a row that was cut; the limit of frames cuts these units again
    frames = scaled(spoken, speed)
    return replace(request, config=own, conditions=replace(conditions, aligned_frames=frames))


def scaled(frames: Tensor, speed: float) -> Tensor:
    """Durations [B, L] divided by a speed, rounded so that the ends keep their places; at least 1 unless 0 before."""
    rows = []
    for row in frames.tolist():
        end, wanted, durations = 0, 0.0, []
        for count in row:
            wanted += count / speed
            durations.append(max(round(wanted) - end, 1) if count else 0)
            end += durations[-1]
        rows.append(durations)
    return torch.tensor(rows, dtype=torch.long).view(frames.shape)
