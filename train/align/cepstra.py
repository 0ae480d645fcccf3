"""Features of speech for alignment: mel-frequency cepstra and their slopes, one vector each 10 ms."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from ...tokenize.layers.stft import frame_signal, mel_filters

SAMPLE_RATE = 16_000
"""Hz; recordings are resampled to it."""
HOP = 160
FRAMES_PER_SECOND = SAMPLE_RATE / HOP
WINDOW, FFT_SIZE, BANDS, COEFFICIENTS = 400, 512, 64, 13
NUM_FEATURES = 3 * COEFFICIENTS
FLOOR = 1e-5
"""Added to the power of a band, whose mean over the louder frames is about 1."""


def cepstra(samples: torch.Tensor) -> np.ndarray:
    """Mel-frequency cepstra of a recording.

    Args:
        samples: [N] at SAMPLE_RATE, float.
    Returns:
        [T, COEFFICIENTS] float32, T = ceil(N / HOP); frame t is centered on samples [t * HOP, (t + 1) * HOP). The mean
        over the louder half of the frames is 0, so that level, microphone and length of the pauses do not matter.
    Source: Davis and Mermelstein, "Comparison of parametric representations for monosyllabic word recognition", 1980.
    """
    padded = torch.nn.functional.pad(samples.float(), (0, -len(samples) % HOP))
    frames = frame_signal(padded, WINDOW, HOP) * torch.hann_window(WINDOW)
    power = torch.fft.rfft(frames, n=FFT_SIZE).abs().square() @ _filters()
    loud = power.sum(1) >= power.sum(1).median()
    level = power[loud].mean().clamp_min(1e-12)
    found = ((power / level + FLOOR).log() @ _cosines()).numpy()
    return found - found[loud.numpy()].mean(0)


@functools.cache
def _filters() -> torch.Tensor:
    return mel_filters(SAMPLE_RATE, FFT_SIZE, BANDS)


@functools.cache
def _cosines() -> torch.Tensor:
    """[BANDS, COEFFICIENTS] discrete cosine transform."""
    band, order = torch.arange(BANDS)[:, None] + 0.5, torch.arange(COEFFICIENTS)
    return (math.pi / BANDS * band * order).cos() * math.sqrt(2 / BANDS)


def with_slopes(found: np.ndarray) -> np.ndarray:
    """Cepstra [T, COEFFICIENTS] with their first and second derivatives in time, [T, NUM_FEATURES]."""
    slope = _slope(found)
    return np.concatenate([found, slope, _slope(slope)], axis=1)


def _slope(values: np.ndarray) -> np.ndarray:
    """Slope of a line through five frames."""
    padded = np.pad(values, ((2, 2), (0, 0)), mode="edge")
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10
