"""What a codebook pattern determines of each step, computed once for all steps of a decode loop.

It depends on the step alone and on the row's length, so a step looks it up: computing it anew takes about thirty tensor
operations, a sixth of a small model's step on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepTable:
    """The steps of a pattern that does not depend on the number of frames; from `CodebookPattern.step_table`."""

    cells: Tensor
    """[K, S] long: the frame in each cell of the unbounded sequence, -1 for none."""
    fills: Tensor
    """[K, S] long: the special id of a cell without a frame, -1 where there is one."""
    after: Tensor
    """[K, 1] long: the special id of cells after the last frame."""
    end: Tensor | None
    """[K, 1] long: the id of the cell after a row's last frame; None without variable length."""
    current: Tensor
    """[S + 1] long: see `CodebookPattern.current_frames`."""

    def forced_ids(self, step: Tensor, lengths: Tensor) -> Tensor:
        """[B, K]; see `CodebookPattern.forced_ids`."""
        at, lengths = step.reshape(1), lengths[:, None, None]
        frames, fills = self.cells.index_select(1, at), self.fills.index_select(1, at)
        beyond = self.after if self.end is None else torch.where(frames == lengths, self.end, self.after)
        return torch.where(frames < lengths, fills, beyond).squeeze(-1)

    def frames_around(self, step: Tensor) -> Tensor:
        """[2] long: the frame that a step predicts, and that of the next step."""
        return self.current.index_select(0, torch.stack([step, step + 1]).reshape(2))
