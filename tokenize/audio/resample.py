"""Sample rate conversion by windowed-sinc interpolation between any two rates, whole or streaming."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ZERO_CROSSINGS = 16
"""Lobes of the sinc on each side: 90 dB of stopband with the Kaiser window below."""
ROLLOFF = 0.945
"""Cutoff as a fraction of the lower Nyquist frequency; leaves room for the transition band."""
KAISER_BETA = 9.0
MAX_PRODUCTS_AT_ONCE = 1 << 22


def resample(samples: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Resample a waveform.

    Args:
        samples: waveform [C, N], float.
        old_rate, new_rate: samples per second.
    Returns:
        waveform [C, ceil(N * new_rate / old_rate)], float32; sample 0 stays at time 0.
    Raises:
        ValueError: a rate is not positive.
    """
    resampler = Resampler(samples.shape[0], old_rate, new_rate)
    return torch.cat([resampler.push(samples), resampler.finish()], dim=-1)


class Resampler:
    """Streaming resampler; the concatenated output does not depend on how the input is split.

    Output sample n is at input position n * old / new = base + phase / L. There are only L = new / gcd phases, so their
    filters are computed once, and each output is the dot product of its phase's filter with the input around its base:

        input     x x x x x x x x x x x x          taps = 6:  base - 2 .. base + 3
        outputs   o    o    o    o    o

    Source: J. O. Smith, "Digital audio resampling", ccrma.stanford.edu/~jos/resample.
    """

    def __init__(self, channels: int, old_rate: int, new_rate: int):
        if old_rate <= 0 or new_rate <= 0:
            raise ValueError(f"sample rates must be positive, found {old_rate} and {new_rate}")
        divisor = math.gcd(old_rate, new_rate)
        self.old, self.new = old_rate // divisor, new_rate // divisor
        self.filters = _phase_filters(self.old, self.new) if self.old != self.new else None  # [new, taps]
        self.half = self.filters.shape[1] // 2 if self.filters is not None else 0
        self.held = torch.zeros(channels, max(0, self.half - 1))  # pending input; starts with silence
        self.first = 1 - self.half  # input position of held[:, 0]
        self.num_read = 0
        self.num_written = 0

    def push(self, samples: Tensor) -> Tensor:
        """Add input samples [C, n]; returns the output samples [C, m] that are complete."""
        self.num_read += samples.shape[-1]
        if self.filters is None:
            return samples.float()
        self.held = torch.cat([self.held, samples.float()], dim=-1)
        # Output n needs input up to base + half, base = n * old // new, so n * old < (num_read - half) * new.
        return self._advance(max(0, -(-(self.num_read - self.half) * self.new // self.old)))

    def finish(self) -> Tensor:
        """End the stream; returns the remaining samples [C, m]."""
        if self.filters is None:
            return self.held[:, :0]
        self.held = torch.nn.functional.pad(self.held, (0, self.half))
        return self._advance(-(-self.num_read * self.new // self.old))

    def _advance(self, until: int) -> Tensor:
        """Compute outputs num_written .. until - 1 and drop input that is no longer needed."""
        assert self.filters is not None
        taps = 2 * self.half
        blocks = [self.held[:, :0]]
        block_size = max(1, MAX_PRODUCTS_AT_ONCE // taps)
        for start in range(self.num_written, until, block_size):
            position = torch.arange(start, min(start + block_size, until)) * self.old
            windows = self.held.unfold(-1, taps, 1)  # a view; window i begins at held[i]
            begin = position // self.new - self.half + 1 - self.first
            blocks.append((windows[:, begin] * self.filters[position % self.new]).sum(-1))
        self.num_written = max(self.num_written, until)
        unneeded = max(0, self.num_written * self.old // self.new - self.half + 1 - self.first)
        self.held = self.held[:, unneeded:].clone()
        self.first += unneeded
        return torch.cat(blocks, dim=-1)


def _phase_filters(old: int, new: int) -> Tensor:
    """Filters [new, 2 * half], float32: row p weights inputs base - half + 1 .. base + half at base + p/new."""
    cutoff = ROLLOFF * min(1.0, new / old)  # of the input's Nyquist frequency
    reach = ZERO_CROSSINGS / cutoff
    half = math.ceil(reach) + 1
    offset = torch.arange(1 - half, half + 1, dtype=torch.float64)
    phase = torch.arange(new, dtype=torch.float64) / new
    distance = offset[None, :] - phase[:, None]
    inside = (1 - (distance / reach).square()).clamp(min=0)
    window = torch.special.i0(KAISER_BETA * inside.sqrt()) * (distance.abs() <= reach)  # Kaiser, up to a factor
    filters = torch.special.sinc(cutoff * distance) * window
    return (filters / filters.sum(dim=1, keepdim=True)).float()  # a constant signal is preserved
