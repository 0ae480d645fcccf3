"""The picture tokenizer's network: convolutions down to a grid, residual codes on each cell, convolutions back up.

Source: VQ-VAE, arXiv:1711.00937; residual codes on the grid: RQ-VAE, arXiv:2203.01941.
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from .config import Config
from .quantizer import Quantized, QuantizerConfig, make_quantizer
from .spec import PictureGeometry


class PictureTokenizerConfig(Config):
    """Pictures of one size to residual codes on a grid and back."""

    kind: Literal["picture"] = "picture"
    name: str
    height: PositiveInt
    width: PositiveInt
    channels: PositiveInt = 3
    downsamplings: NonNegativeInt = 1
    """How often the size is halved: the grid is height / 2^n by width / 2^n."""
    features: PositiveInt = 64
    """Channels of the convolutions at full size; doubled at the first halving."""
    blocks: PositiveInt = 2
    """Residual blocks at each size."""
    latent_dim: PositiveInt = 32
    quantizer: QuantizerConfig

    @property
    def geometry(self) -> PictureGeometry:
        """What one frame of codes stands for."""
        scale = 2**self.downsamplings
        if self.height % scale or self.width % scale:
            raise ValueError(
                f"a picture of {self.height} x {self.width} cannot be halved {self.downsamplings} times; use "
                f"fewer downsamplings"
            )
        return PictureGeometry(
            height=self.height,
            width=self.width,
            channels=self.channels,
            rows=self.height // scale,
            columns=self.width // scale,
        )


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


class PictureNet(nn.Module):
    """Trainable picture tokenizer; `tokenizer.py` freezes it."""

    def __init__(self, config: PictureTokenizerConfig):
        super().__init__()
        self.config = config
        self.geometry = config.geometry
        widths = [config.features * (2 if level else 1) for level in range(config.downsamplings + 1)]
        down: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 3, padding=1)]
        for level in range(config.downsamplings):
            down += [ResidualBlock(widths[level]) for _ in range(config.blocks)]
            down.append(nn.Conv2d(widths[level], widths[level + 1], 4, stride=2, padding=1))
        down += [ResidualBlock(widths[-1]) for _ in range(config.blocks)]
        self.encoder = nn.Sequential(
            *down, nn.GroupNorm(min(8, widths[-1]), widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], config.latent_dim, 1)
        )
        self.quantizer = make_quantizer(config.quantizer, config.latent_dim)
        up: list[nn.Module] = [nn.Conv2d(config.latent_dim, widths[-1], 3, padding=1)]
        up += [ResidualBlock(widths[-1]) for _ in range(config.blocks)]
        for level in reversed(range(config.downsamplings)):
            up += [
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(widths[level + 1], widths[level], 3, padding=1),
            ]
            up += [ResidualBlock(widths[level]) for _ in range(config.blocks)]
        self.decoder = nn.Sequential(
            *up,
            nn.GroupNorm(min(8, widths[0]), widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], config.channels, 3, padding=1),
        )

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, height, width] in [-1, 1] -> latents [B, T, latent_dim], raster order."""
        return self.encoder(pictures).flatten(2).transpose(1, 2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> pictures [B, C, height, width] in [-1, 1]."""
        grid = latents.transpose(1, 2).unflatten(2, (self.geometry.rows, self.geometry.columns))
        return self.decoder(grid.contiguous()).float().tanh()

    def forward(self, pictures: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruct a batch [B, C, height, width], for training; also the quantizer's result with codes [B, T, K]."""
        quantized = self.quantizer(self.encode_pictures(pictures).float())
        return self.decode_latents(quantized.values), quantized
