"""Fixed-shape windows over frames with enough context on both sides.

Every call has the shape [1, back + chunk + ahead, ...]: the context makes the output of the `chunk` frames equal to
processing everything at once.

    frames      0 ......... a ........ a+chunk ......... T
    window           [ back | chunk          | ahead ]
    mask             True on frames in 0 .. T-1, zeros outside
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def cut(self, frames: Tensor, start: int, first: int, total: int | None, fill: float) -> tuple[Tensor, Tensor]:
        """Cut the window whose chunk starts at frame `start`.

        Args:
            frames: [t, ...], frames first .. first + t - 1.
            total: number of frames of the whole signal, None while unknown (then all given frames are valid).
            fill: value of frames outside the signal.
        Returns:
            [1, size, ...] and its mask [1, size].
        """
        end = first + frames.shape[0] if total is None else total
        low, high = start - self.back, start + self.chunk + self.ahead
        inside_low, inside_high = max(low, 0), min(high, end)
        window = frames.new_full((1, self.size, *frames.shape[1:]), fill)
        mask = torch.zeros(1, self.size, dtype=torch.bool, device=frames.device)
        window[0, inside_low - low : inside_high - low] = frames[inside_low - first : inside_high - first]
        mask[0, inside_low - low : inside_high - low] = True
        return window, mask
