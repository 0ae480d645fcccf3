"""Repetition control: a penalty on recent ids of a row, and repetition-aware sampling.

Both use the last codes of the same row and codebook (`LookBack`), so rows do not interact. The codes come from the
decode buffers, prompt included: continuing the beginning of a sample reproduces the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ...lm.patterns.pattern import CodebookPattern


@dataclass(frozen=True)
class Repetition:
    """The repetition settings of n codebooks as tensors on a device (see token_sampler.py)."""

    penalty: Tensor
    """[n], float64; 1 if off."""
    penalty_window: Tensor
    """[n], long, in frames."""
    ras_window: Tensor
    """[n], long, in frames; 0 if off."""
    ras_repeats: Tensor
    """[n], long: an id that occurs this often among the last `ras_window` codes is resampled."""

    def of(self, codebooks: list[int]) -> Repetition:
        """The settings of some codebooks."""
        return Repetition(*(getattr(self, field.name)[codebooks] for field in fields(self)))


class LookBack:
    """The last codes of each row and codebook before a step, in frames; cells without a code in the codebook pattern
    are skipped.

    With delays [0, 1] and a window of 2, at step 3:      step        0  1  2  3
                                                          codebook 0  a0 a1 a2 .      finds a1 a2
                                                          codebook 1  s  b0 b1 .      finds b0 b1
    """

    def __init__(
        self,
        arrangement: CodebookPattern,
        num_frames: int,
        window: int,
        device: torch.device | str,
        capacity: int = 0,
        sizes: Sequence[int] | None = None,
    ):
        """For sequences of num_frames; the window is in frames, at least 1. `capacity`: minimum number of steps in the
        tables. `sizes`: ids of each codebook that count, the first ones; None: all of its codes."""
        frames = arrangement.table(num_frames).to(device)
        steps_of = arrangement.steps_of(torch.arange(num_frames, device=device), num_frames)
        self.frames = F.pad(frames, (0, max(0, capacity - frames.shape[1])), value=-1)
        self.steps_of = F.pad(steps_of, (0, max(0, capacity - num_frames)))
        self.ages = torch.arange(window, 0, -1, device=device)
        """[W]: age of each code in frames; 1 is the previous frame."""
        self.sizes = torch.tensor(sizes or arrangement.cardinalities, device=device)[:, None]

    def parts(self) -> tuple[Tensor, ...]:
        """Its tables."""
        return self.frames, self.steps_of, self.ages

    def __call__(self, columns: Tensor, step: int | Tensor) -> Tensor:
        """Codes [B, K, W] before a step, the latest last, -1 if there is none (an ended row has pad there).

        Args:
            columns: [B, K, 1 + S], the model's input: a column of `start`, then the ids of each step.
        """
        step = torch.as_tensor(step, device=columns.device).reshape(1)
        past = self.frames.index_select(1, step) - self.ages
        where = self.steps_of.gather(1, past.clamp(min=0)) + 1
        codes = columns.gather(2, where.expand(len(columns), -1, -1))
        return codes.masked_fill((past < 0) | (codes >= self.sizes), -1)


def penalize(logits: Tensor, recent: Tensor, ages: Tensor, rules: Repetition) -> Tensor:
    """Make ids that occur among the recent codes less likely, once regardless of how often they occur.

    A positive logit is divided by the penalty, a negative one multiplied by it.

    Args:
        logits: [B, n, V], floating point.
        recent: [B, n, W] long, -1 for none.
        ages: [W], age of each code in frames.
    Returns:
        [B, n, V].
    Source: CTRL, arXiv:1909.05858, section 4.1; the window is Zonos'.
    """
    V = logits.shape[-1]
    counted = (recent >= 0) & (ages <= rules.penalty_window[:, None])
    seen = torch.zeros(*logits.shape[:-1], V + 1, dtype=torch.bool, device=logits.device)
    seen = seen.scatter(-1, torch.where(counted, recent, V), True)[..., :V]
    penalty = rules.penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def repeats(ids: Tensor, recent: Tensor, ages: Tensor, rules: Repetition) -> Tensor:
    """True [B, n] where repetition-aware sampling resamples: the id [B, n] occurs at least `ras_repeats` times among
    the last `ras_window` codes.

    Source: VALL-E 2, arXiv:2406.05370, section 3.2 (window 10, tau 0.1).
    """
    same = (recent == ids.unsqueeze(-1)) & (ages <= rules.ras_window[:, None])
    return (same.sum(dim=-1) >= rules.ras_repeats) & (rules.ras_window > 0)
