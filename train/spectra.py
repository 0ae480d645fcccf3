"""Spectra that losses and measures compare: scaled magnitudes, and mel filters."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def magnitudes(samples: Tensor, size: int) -> Tensor:
    """Spectrum magnitudes of [B, N] with a Hann window of `size` samples, a quarter of it apart: [B, frames, size / 2
    + 1].

    Scaled so that noise of variance 1 has magnitude near 1 in every resolution.
    """
    window = torch.hann_window(size, device=samples.device)
    spectrum = torch.stft(samples, size, size // 4, window=window, return_complex=True, pad_mode="constant")
    power = spectrum.real.square() + spectrum.imag.square()
    return (power / window.square().sum() + 1e-9).sqrt().transpose(1, 2)


@lru_cache
def mel_filters(sample_rate: int, size: int, bands: int) -> Tensor:
    """Triangular filters, equally spaced on the mel scale (2595 log10(1 + f / 700)), each with sum 1: [size / 2 + 1,
    bands]."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, size // 2 + 1, dtype=torch.float64)[:, None]
    width = sample_rate / size  # a filter narrower than a bin would be empty: widen it to one bin
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2]).clamp_min(width)
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1]).clamp_min(width)
    filters = torch.minimum(rising, falling).clamp_min(0)
    return (filters / filters.sum(0).clamp_min(1e-9)).float()
