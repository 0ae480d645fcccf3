"""Change the sample rate of a waveform by windowed-sinc interpolation, for any pair of rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ZERO_CROSSINGS = 16
"""Lobes of the sinc on each side: 90 dB of stopband with the Kaiser window below."""
ROLLOFF = 0.945
"""Cut-off as a share of the lower Nyquist frequency; leaves room for the filter's slope."""
KAISER_BETA = 9.0
MAX_TAPS_AT_ONCE = 1 << 22


def resample(samples: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Resample a waveform.

    Args:
        samples: waveform [C, N], float.
        old_rate, new_rate: samples per second, both > 0.
    Returns:
        waveform [C, ceil(N * new_rate / old_rate)], float32; sample 0 stays at time 0.

    Output sample n lies at input position n * old / new = base + phase / L. Only L = new / gcd phases exist, so their
    filters are made once; each output is the product of its phase's filter with the input around its base.
    """
    if old_rate <= 0 or new_rate <= 0:
        raise ValueError(f"sample rates must be positive, found {old_rate} and {new_rate}")
    samples = samples.float()
    if old_rate == new_rate or samples.shape[-1] == 0:
        return samples
    divisor = math.gcd(old_rate, new_rate)
    old, new = old_rate // divisor, new_rate // divisor
    filters = _phase_filters(old, new)  # [new, taps]
    taps = filters.shape[1]
    num_samples = -(-samples.shape[-1] * new // old)
    last_base = (num_samples - 1) * old // new
    padding = (taps // 2 - 1, max(0, last_base + taps // 2 + 1 - samples.shape[-1]))
    windows = torch.nn.functional.pad(samples, padding).unfold(-1, taps, 1)  # view: window i is centred on input i

    pieces = []
    piece_size = max(1, MAX_TAPS_AT_ONCE // taps)
    for first in range(0, num_samples, piece_size):
        position = torch.arange(first, min(first + piece_size, num_samples)) * old
        pieces.append((windows[:, position // new] * filters[position % new]).sum(-1))
    return torch.cat(pieces, dim=-1)


def _phase_filters(old: int, new: int) -> Tensor:
    """Filters [new, taps], float32: row p weights inputs base - taps/2 + 1 .. base + taps/2 for base + p/new."""
    cutoff = ROLLOFF * min(1.0, new / old)  # of the input's Nyquist frequency
    reach = ZERO_CROSSINGS / cutoff
    half = math.ceil(reach) + 1
    offset = torch.arange(1 - half, half + 1, dtype=torch.float64)
    phase = torch.arange(new, dtype=torch.float64) / new
    distance = offset[None, :] - phase[:, None]
    inside = (1 - (distance / reach).square()).clamp(min=0)
    window = torch.special.i0(KAISER_BETA * inside.sqrt()) * (distance.abs() <= reach)  # Kaiser, up to a factor
    filters = torch.special.sinc(cutoff * distance) * window
    return (filters / filters.sum(dim=1, keepdim=True)).float()  # a constant stays the same constant
