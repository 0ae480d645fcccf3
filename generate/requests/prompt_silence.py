"""Silence at the ends of a recording that a sample begins with, or takes a voice from.

A model that reads a text takes the beginning of a prompt for the beginning of what it reads: before a long silence it
takes words as said that nobody said. So what is silent there is left out, but for a little of it, as recordings have.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

QUIETEST = 3e-3
"""Root mean square of the quietest sound that counts, -50 dB of full scale."""
BELOW_LOUDEST = 0.02
"""And its share of the loudest, -34 dB."""
STEP = 0.02
"""Seconds over which loudness is measured."""
KEPT = 0.08
"""Seconds of silence that stay before and after."""
WORTH_SAYING = 0.05
"""Seconds of silence that may be left out without a word."""


@dataclass(frozen=True)
class Trimmed:
    """A recording without its silent ends."""

    media: Tensor | None
    """[C, n]; None: all of it is silent."""
    note: str | None
    """What was left out, as a clause; None: nothing worth saying."""


def trim_silence(media: Tensor, sample_rate: int) -> Trimmed:
    """Leave the silence out that a recording begins and ends with, but for 0.08 s of it.

    Args:
        media: [C, N] float in [-1, 1].
        sample_rate: samples per second.
    """
    step = max(1, round(STEP * sample_rate))
    power = F.pad(media.float().square().mean(dim=0), (0, -media.shape[-1] % step)).unflatten(0, (-1, step))
    loudness = power.mean(dim=1).sqrt()
    loudest = float(loudness.max())
    if not loudest >= QUIETEST:
        return Trimmed(None, f"has {media.shape[-1] / sample_rate:.2g} s of silence and no sound")
    heard = (loudness >= max(QUIETEST, BELOW_LOUDEST * loudest)).nonzero()
    kept = round(KEPT * sample_rate)
    first = max(0, int(heard[0]) * step - kept)
    last = min(media.shape[-1], (int(heard[-1]) + 1) * step + kept)
    parts = [(first, "begins"), (media.shape[-1] - last, "ends")]
    said = [f"{how} with {n / sample_rate:.2g} s" for n, how in parts if n > WORTH_SAYING * sample_rate]
    return Trimmed(media[:, first:last], f"{' and '.join(said)} of silence too many" if said else None)
