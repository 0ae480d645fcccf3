"""Image discriminator: plain 2-D convolutions, one score per overlapping patch.

Source: PatchGAN of pix2pix, arXiv:1611.07004, section 3.2.2. It uses group norms instead of batch norms, so the score
of an example does not depend on the others.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, LayerCount


class PatchDiscriminatorConfig(Config):
    """Config of the patch discriminator; it has one network."""

    kind: Literal["patch"] = "patch"
    channels: PositiveInt = 64
    """Channels of the first layer; they double with each layer, up to 8 times this."""
    layers: LayerCount = 3
    """Layers that halve the image. With 3, a patch is 54 pixels wide."""


class PatchDiscriminator(nn.Module):
    """Discriminator of image patches."""

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
        """Images [B, C, height, width] -> score map [B, 1, h, w] (high: real) and the features of each layer."""
        h, features = media, []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = F.leaky_relu(norm(layer(h)), 0.2)
            features.append(h)
        return self.last(h), features


def make_patch_discriminators(config: PatchDiscriminatorConfig, channels: int) -> list[nn.Module]:
    """Build the networks of a config."""
    return [PatchDiscriminator(channels, config.channels, config.layers)]
