"""Reconstruction losses of tokenizers: multi-resolution spectra for sound, squared error for pictures."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from ..tokenize.config import Config


class AudioLossConfig(Config):
    """Weights of the terms; each term is a mean, so weights compare directly."""

    kind: Literal["audio"] = "audio"
    mel: NonNegativeFloat = 2.0
    """Log-mel distance over several windows (DAC, arXiv:2306.06546, section 3.4)."""
    spectrum: NonNegativeFloat = 1.0
    """Spectral convergence and log-magnitude distance over several windows (Parallel WaveGAN, arXiv:1910.11480,
    section 2.2)."""
    quantizer: NonNegativeFloat = 1.0
    """Multiplies the quantizer's own losses (commitment, codebook)."""
    adversarial: NonNegativeFloat = 1.0
    """Hinge loss against the spectral discriminators."""
    features: NonNegativeFloat = 2.0
    """Distance of the discriminators' features."""
    adversarial_from: NonNegativeInt = 0
    """Step at which the discriminators come in."""
    adversarial_every: PositiveInt = 1
    """Use them every so many steps; they cost more than everything else together."""
    adversarial_seconds: float = 0.5
    """Length of the excerpt they look at."""


class PictureLossConfig(Config):
    """Weights of the terms."""

    kind: Literal["picture"] = "picture"
    squared: NonNegativeFloat = 1.0
    """Mean squared error of pixels in [-1, 1]."""
    quantizer: NonNegativeFloat = 1.0
    """Multiplies the quantizer's own losses (commitment, codebook)."""


RESOLUTIONS = ((256, 20), (512, 40), (1024, 80), (2048, 128))  # window in samples, mel bands


def spectral_losses(found: Tensor, wanted: Tensor, mask: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Multi-resolution spectral distances.

    Args:
        found, wanted: samples [B, N].
        mask: [B, N] bool, False on padding, which counts for nothing (both sides are silenced there).
    Returns:
        log-mel distance and spectrum distance, scalars in nats and nats + ratio.
    """
    found, wanted = found.float() * mask, wanted.float() * mask
    mel, spectrum = found.new_zeros(()), found.new_zeros(())
    for size, bands in RESOLUTIONS:
        filters = mel_filters(sample_rate, size, bands).to(found.device)
        a, b = magnitudes(found, size), magnitudes(wanted, size)
        mel = mel + (torch.log(a @ filters + 1e-4) - torch.log(b @ filters + 1e-4)).abs().mean()
        convergence = (a - b).norm(dim=(1, 2)) / b.norm(dim=(1, 2)).clamp_min(1e-3)
        spectrum = (
            spectrum + convergence.clamp(max=10.0).mean() + (torch.log(a + 1e-4) - torch.log(b + 1e-4)).abs().mean()
        )
    return mel / len(RESOLUTIONS), spectrum / len(RESOLUTIONS)


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
