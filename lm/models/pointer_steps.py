"""The pointer of an aligned text at the steps of a codebook pattern.

step                 0  1  2  3  4        delay, K = 2, 3 frames
codebook 0           a0 a1 a2 E
codebook 1           .  b0 b1 b2 E
frame of the step    0  1  2  3  3        `current_frames`: that of the most advanced codebook
pointer              0  0  1  2  2        read at the input; 2: the end, after 2 units
advance              0  1  1  .  .        predicted where the next step is at another frame
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditioning.aligned import AlignedUnits
from ..conditioning.pointers import Pointers
from ..ops.loss import IGNORED
from ..patterns.pattern import CodebookPattern


@dataclass(frozen=True)
class StepPointers:
    """The pointers of whole sequences, by step."""

    read: Pointers
    """[B, S]: what the steps read."""
    wanted: Tensor
    """[B, S] long: the advance that each step predicts, IGNORED if none."""

    def reach(self, units: AlignedUnits) -> Tensor:
        """[B, S] long: how far the pointer may advance."""
        return units.reach.gather(1, self.read.unit)


def advances_after(pattern: CodebookPattern, steps: Tensor) -> Tensor:
    """bool, like steps: whether the pointer may advance after a step, because the next one is at another frame."""
    return pattern.current_frames(steps + 1) > pattern.current_frames(steps)


def step_pointers(
    pattern: CodebookPattern, units: AlignedUnits, steps: Tensor, lengths: Tensor | int, num_frames: int
) -> StepPointers:
    """The pointers of steps [S], from the durations of the units.

    Args:
        lengths: frames of each row, [B] long or one number. num_frames: of the longest row.
    """
    frames = units.pointers(num_frames + 1)
    now, then = (pattern.current_frames(s).clamp(max=num_frames) for s in (steps, steps + 1))
    read = Pointers(frames.unit[:, now], frames.since[:, now])
    lengths = torch.as_tensor(lengths, device=steps.device).reshape(-1, 1)
    counts = advances_after(pattern, steps) & (now < lengths)
    return StepPointers(read, torch.where(counts, frames.unit[:, then] - read.unit, IGNORED))


def check_durations(units: AlignedUnits, lengths: Tensor | int) -> None:
    """Raise ValueError unless the units last as long as the codes; values are checked on the CPU only."""
    if units.frames is None:
        raise ValueError("the durations of the units are unknown; pass aligned_frames with the conditions")
    if units.frames.device.type != "cpu":
        return
    inside = torch.arange(units.frames.shape[1]) < units.counts[:, None]
    sums = units.frames.masked_fill(~inside, 0).sum(dim=1)
    differ = (sums != torch.as_tensor(lengths)).nonzero()
    if differ.numel():
        row = int(differ[0])
        found = lengths if isinstance(lengths, int) else int(lengths[row])
        raise ValueError(f"row {row}: its units last {int(sums[row])} frames, but it has {found} frames of codes")
