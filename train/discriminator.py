"""Multi-scale spectral discriminators for the audio tokenizer: small 2-D convolutions over complex spectra, hinge
loss.

Source: MS-STFT discriminator of EnCodec, arXiv:2210.13438, section 3.4 (here narrower, and strided in frequency, for
CPUs).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ..tokenize.config import Config


class DiscriminatorConfig(Config):
    """One network for each window."""

    windows: tuple[PositiveInt, ...] = (1024, 512, 256)
    """Samples of each network's spectrum."""
    channels: PositiveInt = 16
    layers: PositiveInt = 4
    """Strided layers between the first and the last."""


class SpectralDiscriminator(nn.Module):
    """Judges one resolution."""

    window: Tensor

    def __init__(self, window: int, channels: int, layers: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.size = window
        widths = [2] + [channels * (1 if layer < 2 else 2) for layer in range(layers)]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (3, 9), stride=(1, 2), padding=(1, 4))) for a, b in pairwise(widths)
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 3), padding=1))

    def forward(self, samples: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Samples [B, N] -> a map of scores (high: real) and the features of each layer."""
        spectrum = torch.stft(
            samples.float(), self.size, self.size // 4, window=self.window, return_complex=True, pad_mode="constant"
        )
        spectrum = spectrum / self.window.square().sum().sqrt()
        # Compressed magnitudes: speech spans 60 dB, and a linear scale shows the discriminator only the loudest
        # partials.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt()
        scale = magnitude.pow(-0.5)
        h = torch.stack([spectrum.real * scale, spectrum.imag * scale], dim=1).transpose(2, 3)
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
            features.append(h)
        return self.last(h), features


class Discriminators(nn.Module):
    """All resolutions."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.nets = nn.ModuleList(
            SpectralDiscriminator(window, config.channels, config.layers) for window in config.windows
        )

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Hinge loss of the discriminators; `fake` is detached here. Samples [B, N]."""
        terms = []
        for net in self.nets:
            scores, _ = net(torch.cat([real, fake.detach()]))
            on_real, on_fake = scores.float().chunk(2)
            terms.append(F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean())
        return torch.stack(terms).mean()

    def generator_losses(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """What the tokenizer minimises: the adversarial term, and the relative distance of features."""
        adversarial, distances = [], []
        for net in self.nets:
            with torch.no_grad():
                _, wanted = net(real)
            scores, found = net(fake)
            adversarial.append(F.relu(1 - scores.float()).mean())
            distances += [
                (a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp_min(1e-3)
                for a, b in zip(found, wanted, strict=True)
            ]
        return torch.stack(adversarial).mean(), torch.stack(distances).mean()
