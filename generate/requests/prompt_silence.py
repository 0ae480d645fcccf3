"""Trims silence at the ends of a prompt or reference recording.

A text model aligns the beginning of a prompt with the beginning of the text: given a long silence, it treats words as
already spoken. Silence is therefore trimmed, except for a short margin as in ordinary recordings.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

QUIETEST = 3e-3
"""RMS level below which audio counts as silent, -50 dB of full scale."""
BELOW_LOUDEST = 0.02
"""The same threshold relative to the loudest part, -34 dB."""
STEP = 0.02
"""Seconds per loudness measurement."""
KEPT = 0.08
"""Seconds of silence kept at each end."""
WORTH_SAYING = 0.05
"""Seconds of silence that may be trimmed without a note."""


@dataclass(frozen=True)
class Trimmed:
    """A recording without its silent ends."""

    media: Tensor | None
    """[C, n]; None: all of it is silent."""
    note: str | None
    """What was trimmed, as a clause for a message; None: too little to mention."""


def trim_silence(media: Tensor, sample_rate: int) -> Trimmed:
    """Trim leading and trailing silence of a recording to 0.08 s.

    Args:
        media: [C, N] float in [-1, 1].
        sample_rate: samples per second.
    """
    step = max(1, round(STEP * sample_rate))
    power = F.pad(media.float().square().mean(dim=0), (0, -media.shape[-1] % step)).unflatten(0, (-1, step))
    loudness = power.mean(dim=1).sqrt()
    loudest = float(loudness.max())
    if not loudest >= QUIETEST:
        return Trimmed(None, f"has {media.shape[-1] / sample_rate:.2g} s of silence and nothing else")
    loud = (loudness >= max(QUIETEST, BELOW_LOUDEST * loudest)).nonzero()
    kept = round(KEPT * sample_rate)
    first = max(0, int(loud[0]) * step - kept)
    last = min(media.shape[-1], (int(loud[-1]) + 1) * step + kept)
    parts = [(first, "begins"), (media.shape[-1] - last, "ends")]
    notes = [f"{how} with {n / sample_rate:.2g} s" for n, how in parts if n > WORTH_SAYING * sample_rate]
    return Trimmed(media[:, first:last], f"{' and '.join(notes)} of excess silence" if notes else None)
