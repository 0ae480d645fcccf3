"""Image encoder and decoder `convolutional`: small convolutional networks down to a grid and back.

Source: VQ-VAE, arXiv:1711.00937; residual codes on the grid: RQ-VAE, arXiv:2203.01941.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config
from .base import ImageShape


class ConvolutionalConfig(Config):
    """Its size is set by `downsamplings`, `features` and `blocks` of the tokenizer."""

    kind: Literal["convolutional"] = "convolutional"

    def grid(self, shape: ImageShape) -> tuple[int, int]:
        """Rows and columns of the codes; ValueError if the image size is not divisible accordingly."""
        return halved_grid(shape)


def halved_grid(shape: ImageShape) -> tuple[int, int]:
    """Rows and columns after the tokenizer's `downsamplings`; ValueError if the image size is not divisible."""
    scale = 2**shape.downsamplings
    if shape.height % scale or shape.width % scale:
        raise ValueError(
            f"an image of {shape.height} x {shape.width} cannot be halved {shape.downsamplings} times; use "
            f"fewer downsamplings"
        )
    return shape.height // scale, shape.width // scale


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), size unchanged."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(min(8, channels), channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(min(8, channels), channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class ConvolutionalEncoder(nn.Sequential):
    """Convolutional encoder: images to latents."""

    def __init__(self, config: ConvolutionalConfig, shape: ImageShape):
        widths = widths_of(shape)
        down: list[nn.Module] = [nn.Conv2d(shape.channels, widths[0], 3, padding=1)]
        for level in range(shape.downsamplings):
            down += [ResidualBlock(widths[level]) for _ in range(shape.blocks)]
            down.append(nn.Conv2d(widths[level], widths[level + 1], 4, stride=2, padding=1))
        down += [ResidualBlock(widths[-1]) for _ in range(shape.blocks)]
        super().__init__(
            *down, nn.GroupNorm(min(8, widths[-1]), widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], shape.latent_dim, 1)
        )

    def forward(self, input: Tensor) -> Tensor:
        """Images [B, C, height, width] in [-1, 1] -> latents [B, T, latent_dim], raster order."""
        return super().forward(input).flatten(2).transpose(1, 2)


class ConvolutionalDecoder(nn.Sequential):
    """Convolutional decoder: latents to images."""

    def __init__(self, config: ConvolutionalConfig, shape: ImageShape):
        self.grid = config.grid(shape)
        widths = widths_of(shape)
        up: list[nn.Module] = [nn.Conv2d(shape.latent_dim, widths[-1], 3, padding=1)]
        up += [ResidualBlock(widths[-1]) for _ in range(shape.blocks)]
        for level in reversed(range(shape.downsamplings)):
            up += [
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(widths[level + 1], widths[level], 3, padding=1),
            ]
            up += [ResidualBlock(widths[level]) for _ in range(shape.blocks)]
        super().__init__(
            *up,
            nn.GroupNorm(min(8, widths[0]), widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], shape.channels, 3, padding=1),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> images [B, C, height, width] in [-1, 1], float32."""
        return super().forward(input.transpose(1, 2).unflatten(2, self.grid).contiguous()).float().tanh()


def widths_of(shape: ImageShape) -> list[int]:
    """Channels at each resolution, full resolution first."""
    return [shape.features * (2 if level else 1) for level in range(shape.downsamplings + 1)]
