"""Speech at another speed, for models with an aligned text: a first pass generates at the model's own rate, and the
durations of its units, scaled, are those of the second.

    speed 1.5      unit       h  ə  l  ˈO  .
                   frames     3  2  4   6  2        of the first pass
                   scaled     2  1  3   4  1        each end at (end / speed), but a unit that lasts keeps one frame

So the rate is what was asked for, as far as units can be shortened. Raising the odds of an advance instead hardly
changes it at first, and then breaks the speech: after a few frames the model is certain that a unit ends, or that it
does not. The first pass costs as much as generation at speed 1, before the first frame.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..requests.request import Request


def first_pass(request: Request) -> Request:
    """The request at the model's own rate, with as many frames as the second pass may need."""
    speed = request.config.speed
    longest = math.ceil(request.length.max_frames * max(speed, 1.0))
    own = request.config.model_copy(update={"speed": 1.0})
    return replace(request, config=own, length=replace(request.length, max_frames=longest))


def durations(units: Tensor, ended: Tensor, num_units: int, speed: float) -> Tensor:
    """The durations [B, L] of a second pass.

    Args:
        units: [B, T] long, the unit of each frame of the first pass, -1 beyond a row's length. ended: [B] bool.
    """
    spoken = torch.stack([torch.bincount(row[row >= 0], minlength=num_units)[:num_units] for row in units])
    last = units.amax(dim=1, keepdim=True)
    cut = ~ended[:, None]
    # A row that was cut must be cut again: the unit it was in lasts longer, the units after it at least a frame.
    spoken = spoken + (cut & (torch.arange(num_units) == last)) * math.ceil(speed)
    return scaled(spoken.masked_fill(cut & (torch.arange(num_units) > last), 1), speed)


def scaled(frames: Tensor, speed: float) -> Tensor:
    """Durations [B, L] divided by a speed, rounded so that the ends keep their places; at least 1 unless 0 before."""
    rows = []
    for row in frames.tolist():
        end, wanted, found = 0, 0.0, []
        for count in row:
            wanted += count / speed
            found.append(max(round(wanted) - end, 1) if count else 0)
            end += found[-1]
        rows.append(found)
    return torch.tensor(rows, dtype=torch.long).view(frames.shape)
