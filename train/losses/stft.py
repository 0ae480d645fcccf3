"""Spectra that losses and measures compare: scaled magnitudes, and mel filters."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...tokenize.audio import stft

mel_filters = lru_cache(stft.mel_filters)
"""See there; losses ask for the same ones in every step."""


def magnitudes(samples: Tensor, size: int) -> Tensor:
    """Spectrum magnitudes of [B, N] with a Hann window of `size` samples, a quarter of it apart: [B, frames, size / 2
    + 1].

    Scaled so that noise of variance 1 has magnitude near 1 in every resolution.
    """
    window = torch.hann_window(size, device=samples.device)
    found = torch.stft(samples, size, size // 4, window=window, return_complex=True, pad_mode="constant")
    power = found.real.square() + found.imag.square()
    return (power / window.square().sum() + 1e-9).sqrt().transpose(1, 2)
