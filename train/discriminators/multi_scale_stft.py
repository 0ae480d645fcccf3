"""Audio discriminator: small 2-D convolutions over complex spectra, one network per window.

Source: MS-STFT discriminator of EnCodec, arXiv:2210.13438, section 3.4 (here narrower, and strided in frequency, for
CPUs).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ...configs.schema import Config, LayerCount


class STFTDiscriminatorConfig(Config):
    """One network per STFT window."""

    kind: Literal["stft"] = "stft"
    windows: tuple[PositiveInt, ...] = (1024, 512, 256)
    """STFT window of each network, in samples."""
    channels: PositiveInt = 16
    """Channels of the first two layers; later layers have twice as many."""
    layers: LayerCount = 4
    """Strided layers before the output layer."""


class STFTDiscriminator(nn.Module):
    """Discriminator for one resolution."""

    window: Tensor

    def __init__(self, window: int, channels: int, layers: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        widths = [2] + [channels * (1 if layer < 2 else 2) for layer in range(layers)]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, 9), stride=(1, 2), padding=(1, 4))) for a, b in pairwise(widths)
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 3), padding=1))

    def forward(self, media: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Samples [B, N] -> score map [B, 1, ...] (high: real) and the features of each layer."""
        h = compressed_spectrum(media, self.window)
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
            features.append(h)
        return self.last(h), features


def make_stft_discriminators(config: STFTDiscriminatorConfig, channels: int) -> list[nn.Module]:
    """Build the networks of a config."""
    return [STFTDiscriminator(window, config.channels, config.layers) for window in config.windows]


def compressed_spectrum(samples: Tensor, window: Tensor) -> Tensor:
    """Complex spectrum of [B, N] as real and imaginary parts [B, 2, frames, size / 2 + 1], with square-root
    magnitudes."""
    size = window.numel()
    spectrum = torch.stft(samples.float(), size, size // 4, window=window, return_complex=True, pad_mode="constant")
    spectrum = spectrum / window.square().sum().sqrt()
    # Compressed magnitudes: speech spans 60 dB, and on a linear scale the discriminator sees only the loudest partials.
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt()
    scale = magnitude.pow(-0.5)
    return torch.stack([spectrum.real * scale, spectrum.imag * scale], dim=1).transpose(2, 3)
