"""Spectra for losses and metrics: scaled magnitudes and mel filters."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...tokenize.layers import stft

mel_filters = lru_cache(stft.mel_filters)
"""Cached stft.mel_filters; losses request the same filters in every step."""


def magnitudes(samples: Tensor, size: int) -> Tensor:
    """STFT magnitudes of [B, N] with a Hann window of `size` samples and a hop of size / 4: [B, frames, size / 2 + 1].

    Scaled so that noise of variance 1 has magnitude near 1 at every resolution.
    """
    window = torch.hann_window(size, device=samples.device)
    found = torch.stft(samples, size, size // 4, window=window, return_complex=True, pad_mode="constant")
    power = found.real.square() + found.imag.square()
    return (power / window.square().sum() + 1e-9).sqrt().transpose(1, 2)
