"""Audio discriminator with separate convolutions for each band of a complex spectrum, at several resolutions.

Source: complex multi-resolution, multi-band discriminator of the Descript Audio Codec, arXiv:2306.06546, section 3.3.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ...configs.schema import Config, LayerCount
from .multi_scale_stft import compressed_spectrum


class BandDiscriminatorConfig(Config):
    """One network per STFT window."""

    kind: Literal["bands"] = "bands"
    windows: tuple[PositiveInt, ...] = (2048, 1024, 512)
    """STFT window of each network, in samples."""
    edges: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    """Band edges, as fractions of the spectrum."""
    channels: PositiveInt = 32
    """Channels of every layer."""
    layers: LayerCount = 5
    """Layers per band; all but the first and the last halve the frequency resolution."""

    @model_validator(mode="after")
    def _edges_rise(self) -> BandDiscriminatorConfig:
        if self.edges[:1] != (0.0,) or self.edges[-1:] != (1.0,) or any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError(f"edges must rise from 0.0 to 1.0, found {list(self.edges)}")
        return self


class BandDiscriminator(nn.Module):
    """Discriminator for one resolution."""

    window: Tensor

    def __init__(self, window: int, edges: tuple[float, ...], channels: int, layers: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        bins = window // 2 + 1
        self.bands = [(int(a * bins), max(int(b * bins), int(a * bins) + 1)) for a, b in pairwise(edges)]
        self.stacks = nn.ModuleList()
        for _ in self.bands:
            stack = nn.ModuleList()
            for layer in range(layers):
                stride = (1, 2) if 0 < layer < layers - 1 else (1, 1)
                inputs = channels if layer else 2
                stack.append(weight_norm(nn.Conv2d(inputs, channels, (3, 9), stride=stride, padding=(1, 4))))
            self.stacks.append(stack)
        self.last = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=1))

    def forward(self, media: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Samples [B, N] -> score map [B, 1, ...] (high: real) and the features of each layer and band."""
        spectrum = compressed_spectrum(media, self.window)
        features, ends = [], []
        for (low, high), stack in zip(self.bands, self.stacks, strict=True):
            h = spectrum[..., low:high]
            assert isinstance(stack, nn.ModuleList)
            for layer in stack:
                h = F.leaky_relu(layer(h), 0.1)
                features.append(h)
            ends.append(h)
        return self.last(torch.cat(ends, dim=-1)), features


def make_band_discriminators(config: BandDiscriminatorConfig, channels: int) -> list[nn.Module]:
    """Build the networks of a config."""
    return [BandDiscriminator(window, config.edges, config.channels, config.layers) for window in config.windows]
