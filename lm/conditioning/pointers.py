"""Monotonic pointers: which unit of a text each frame speaks, and how far the pointer may advance after it.

    unit        0  1  2  3  4          `|` is silent
                |  h  ˈI |  .
    frames      2  1  3  0  1
    frame       0  1  2  3  4  5  6  7
    pointer     0  0  1  2  2  2  4  5         5: the end, after the last unit
    since       0  1  0  0  1  2  0  0         frames of the unit before this one
    advance     0  1  1  0  0  2  1            after each frame: units from its pointer to the next frame's

The pointer never moves back, and it skips only silent units, so every other unit lasts at least one frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Pointers:
    """The unit that rows speak at some frames or steps."""

    unit: Tensor
    """[B, S] long: index of the unit; the number of units from the end on."""
    since: Tensor
    """[B, S] long: frames that the unit has lasted before this one; 0 from the end on."""


def pointers_of(frames: Tensor, counts: Tensor, num_frames: int) -> Pointers:
    """The pointers of frames 0 .. num_frames - 1.

    Args:
        frames: [B, L] long, how many frames each unit lasts; values beyond a row's units are ignored.
        counts: [B] long, units of each row.
    """
    inside = torch.arange(frames.shape[1], device=frames.device) < counts[:, None]
    frames = frames.masked_fill(~inside, 0)
    ends = frames.cumsum(dim=1)
    at = torch.arange(num_frames, device=frames.device).expand(len(frames), -1).contiguous()
    unit = torch.searchsorted(ends, at, right=True)  # units of no frames end where they begin: they are passed over
    unit = torch.minimum(unit, counts[:, None])
    begins = F.pad(ends - frames, (0, 1)).gather(1, unit)
    return Pointers(unit, (at - begins).masked_fill(unit == counts[:, None], 0))


def longest_advances(silent: Tensor, counts: Tensor, most: int) -> Tensor:
    """How many units the pointer may advance from each unit, at most to the next one that is not silent or the end.

    Args:
        silent: [B, L] bool. counts: [B] long, units of each row. most: limit of an advance.
    Returns:
        [B, L + 1] long, from 1 to `most`; 0 at the end.
    """
    B, L = silent.shape
    unit = torch.arange(L + 1, device=silent.device)
    stops = torch.cat([~silent, silent.new_ones(B, 1)], dim=1) | (unit >= counts[:, None])
    next_stop = torch.where(stops, unit, L + 1).flip(1).cummin(dim=1).values.flip(1)  # at or after each unit
    reach = torch.cat([next_stop[:, 1:], next_stop[:, -1:]], dim=1) - unit
    return reach.clamp(max=most).masked_fill(unit >= counts[:, None], 0)
