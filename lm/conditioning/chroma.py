"""Chroma of audio: the strongest pitch class of each frame, which describes a melody without its instruments.

    samples [N] ──► STFT, power [T, F] ──► filters of 12 pitch classes ──► one-hot of the largest [T, 12]

Source: the melody condition of MusicGen (arXiv:2306.05284), as in transformers' feature extractor (Apache-2.0); filters
of D. Ellis (2007), Chroma feature analysis and synthesis, with librosa's constants.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from ...configs.schema import Config

CENTER, HALF_WIDTH = 5.0, 2.0
"""Octaves above A0 / 16 at which the filters are strongest, and the standard deviation of their weight."""


class ChromaConfig(Config):
    """Sizes of the analysis."""

    sample_rate: PositiveInt = 32000
    """Sample rate of the audio that is analyzed."""
    window: int = Field(default=16384, ge=16, le=1 << 20)
    """Samples of an STFT window; even."""
    hop: PositiveInt = 4096
    """Samples between frames."""
    bins: int = Field(default=12, ge=2, le=128)
    """Number of pitch classes; class 0 is C."""
    seconds: int = Field(default=30, ge=1, le=3600)
    """A longer recording is cut."""


def chroma(samples: Tensor, config: ChromaConfig) -> Tensor:
    """One-hot pitch classes [T, bins] float32 of mono samples [N], T = 1 + max(N, window) // hop.

    Samples beyond the config's seconds are ignored. Frame t is centered on sample t * hop, the signal reflected at its
    ends. A silent frame has class 0.
    """
    size = config.window
    samples = samples[: config.seconds * config.sample_rate].float()
    missing = max(0, size - len(samples))
    samples = F.pad(samples, (missing // 2, missing - missing // 2))
    window = torch.hann_window(size, device=samples.device)
    spectrum = torch.stft(
        samples, size, config.hop, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    power = spectrum.abs().square()
    found = chroma_filters(config).to(power.device) @ power
    return F.one_hot(found.argmax(dim=0), config.bins).float()


def chroma_filters(config: ChromaConfig) -> Tensor:
    """Weights [bins, window / 2 + 1] float32 of the STFT's frequencies in each pitch class.

    A frequency f lies at log2(f / (440 / 16)) octaves; a Gaussian around each class, as wide as the distance of two
    frequencies but at least a class, each frequency's weights with norm 1, then weighted by octave.
    """
    bins, size = config.bins, config.window
    frequencies = torch.arange(1, size, dtype=torch.float64) * config.sample_rate / size
    place = bins * torch.log2(frequencies / (440.0 / 16))
    place = torch.cat([place[:1] - 1.5 * bins, place])  # frequency 0: broad, and far below
    width = torch.cat([place.diff().clamp_min(1.0), torch.ones(1, dtype=torch.float64)])
    half = float(round(bins / 2))
    distance = (place - torch.arange(bins, dtype=torch.float64)[:, None] + half + 10 * bins).remainder(bins) - half
    weights = torch.exp(-0.5 * (2 * distance / width).square())
    weights = weights / weights.square().sum(dim=0).sqrt()
    weights = weights * torch.exp(-0.5 * ((place / bins - CENTER) / HALF_WIDTH).square())
    return weights.roll(-3 * (bins // 12), dims=0)[:, : size // 2 + 1].float()
