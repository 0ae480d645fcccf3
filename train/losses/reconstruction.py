"""Reconstruction (output) losses of tokenizers: spectra and waveforms for audio, pixels for images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .base import LossConfig, LossContext, ReconstructionLoss, ReconstructionLossInputs
from .stft import magnitudes, mel_filters

RESOLUTIONS = ((256, 20), (512, 40), (1024, 80), (2048, 128))  # window in samples, mel bands


class MelConfig(LossConfig):
    """Log-mel distance over several windows (DAC, arXiv:2306.06546, section 3.4), in nats."""

    kind: Literal["mel"] = "mel"


class SpectrumConfig(LossConfig):
    """Spectral convergence and log-magnitude distance over several windows (Parallel WaveGAN, arXiv:1910.11480, section
    2.2)."""

    kind: Literal["spectrum"] = "spectrum"


class WaveformConfig(LossConfig):
    """Difference of samples."""

    kind: Literal["waveform"] = "waveform"
    power: Literal[1, 2] = 1
    """1: absolute difference. 2: squared difference."""


class PixelsConfig(LossConfig):
    """Difference of pixels in [-1, 1]."""

    kind: Literal["pixels"] = "pixels"
    power: Literal[1, 2] = 2
    """1: absolute difference. 2: squared difference."""


class MelLoss(ReconstructionLoss):
    """See MelConfig."""

    def __init__(self, config: MelConfig, context: LossContext, where: str):
        self.sample_rate = context.geometry.sample_rate  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, view: ReconstructionLossInputs) -> Tensor:
        """See ReconstructionLoss."""
        return mel_distance(view.found, view.wanted, self.sample_rate)


class SpectrumLoss(ReconstructionLoss):
    """See SpectrumConfig."""

    def __init__(self, config: SpectrumConfig, context: LossContext, where: str):
        pass

    def __call__(self, view: ReconstructionLossInputs) -> Tensor:
        """See ReconstructionLoss."""
        return spectrum_distance(view.found, view.wanted)


class DifferenceLoss(ReconstructionLoss):
    """See WaveformConfig and PixelsConfig."""

    def __init__(self, config: WaveformConfig | PixelsConfig, context: LossContext, where: str):
        self.power = config.power

    def __call__(self, view: ReconstructionLossInputs) -> Tensor:
        """See ReconstructionLoss."""
        difference = (view.found - view.wanted).flatten(1)
        return (difference.abs() if self.power == 1 else difference.square()).mean(1)


def mel_distance(found: Tensor, wanted: Tensor, sample_rate: int) -> Tensor:
    """Mean absolute difference of log-mel spectra over several resolutions: samples [B, N] -> [B], in nats."""
    total = found.new_zeros(len(found))
    for size, bands in RESOLUTIONS:
        filters = mel_filters(sample_rate, size, bands).to(found.device)
        a, b = magnitudes(found, size), magnitudes(wanted, size)
        total = total + (torch.log(a @ filters + 1e-4) - torch.log(b @ filters + 1e-4)).abs().mean((1, 2))
    return total / len(RESOLUTIONS)


def spectrum_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Spectral convergence and log-magnitude distance, over several resolutions: samples [B, N] -> [B], ratio +
    nats."""
    total = found.new_zeros(len(found))
    for size, _ in RESOLUTIONS:
        a, b = magnitudes(found, size), magnitudes(wanted, size)
        convergence = (a - b).norm(dim=(1, 2)) / b.norm(dim=(1, 2)).clamp_min(1e-3)
        total = total + convergence.clamp(max=10.0) + (torch.log(a + 1e-4) - torch.log(b + 1e-4)).abs().mean((1, 2))
    return total / len(RESOLUTIONS)
