"""A discriminator of pictures: plain 2-D convolutions, one score for each overlapping patch.

Source: PatchGAN of pix2pix, arXiv:1611.07004, section 3.2.2. Its batch norms are group norms here: an item's score does
not depend on the others.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, LayerCount


class PatchDiscriminatorConfig(Config):
    """One network."""

    kind: Literal["patch"] = "patch"
    channels: PositiveInt = 64
    """Of the first layer; doubled in each next one, at most 8 times."""
    layers: LayerCount = 3
    """Layers that halve the picture. A patch is 70 pixels wide with 3."""


class PatchDiscriminator(nn.Module):
    """Judges patches."""

    def __init__(self, inputs: int, channels: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(inputs, channels, 4, stride=2, padding=1)])
        self.norms = nn.ModuleList([nn.Identity()])
        width = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2**layer, 8)
            last = layer == layers
            self.layers.append(nn.Conv2d(width, wider, 3 if last else 4, stride=1 if last else 2, padding=1))
            self.norms.append(nn.GroupNorm(min(8, wider), wider))
            width = wider
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, media: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Pictures [B, C, height, width] -> a map of scores [B, 1, h, w] (high: real) and the features of each
        layer."""
        h, features = media, []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = F.leaky_relu(norm(layer(h)), 0.2)
            features.append(h)
        return self.last(h), features


def make_patch_discriminators(config: PatchDiscriminatorConfig, channels: int) -> list[nn.Module]:
    """The networks of a config."""
    return [PatchDiscriminator(channels, config.channels, config.layers)]
