"""Image encoder and decoder `conditioned`: the decoder's norms are spatially modulated by the quantized latents.

    norm(x, z) = normalized x * (1 + conv1(upsampled z)) + conv1(upsampled z)

Adjacent equal codes can then decode to different patches. The encoder is that of `convolutional`.
Source: MoVQ, arXiv:2209.09002.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config
from .base import ImageShape
from .convolutional import ConvolutionalConfig, ConvolutionalEncoder, halved_grid, widths_of


class ConditionedConfig(Config):
    """Its size is set by `downsamplings`, `features` and `blocks` of the tokenizer, as for `convolutional`."""

    kind: Literal["conditioned"] = "conditioned"

    def grid(self, shape: ImageShape) -> tuple[int, int]:
        """Rows and columns of the codes; ValueError if the image size is not divisible accordingly."""
        return halved_grid(shape)


class SpatialNorm(nn.Module):
    """Group norm, scaled and shifted per position by the latents."""

    def __init__(self, channels: int, latent_dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(min(8, channels), channels, affine=False)
        self.scale = nn.Conv2d(latent_dim, channels, 1)
        self.shift = nn.Conv2d(latent_dim, channels, 1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """[B, channels, h, w] and latents [B, latent_dim, rows, columns] -> the shape of x."""
        latents = F.interpolate(latents, size=x.shape[2:], mode="nearest")
        return self.norm(x) * (1 + self.scale(latents)) + self.shift(latents)


class ConditionedBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x, z))), z))), size unchanged."""

    def __init__(self, channels: int, latent_dim: int):
        super().__init__()
        self.norm1 = SpatialNorm(channels, latent_dim)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = SpatialNorm(channels, latent_dim)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """[B, channels, h, w] and latents [B, latent_dim, rows, columns] -> the shape of x."""
        h = self.conv1(F.silu(self.norm1(x, latents)))
        return x + self.conv2(F.silu(self.norm2(h, latents)))


class ConditionedEncoder(ConvolutionalEncoder):
    """Encoder identical to `convolutional`: images to latents."""

    def __init__(self, config: ConditionedConfig, shape: ImageShape):
        super().__init__(ConvolutionalConfig(), shape)


class ConditionedDecoder(nn.Module):
    """Decoder with spatially modulated norms: latents to images."""

    def __init__(self, config: ConditionedConfig, shape: ImageShape):
        super().__init__()
        self.grid = config.grid(shape)
        widths = widths_of(shape)
        self.enter = nn.Conv2d(shape.latent_dim, widths[-1], 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(ConditionedBlock(width, shape.latent_dim) for _ in range(shape.blocks))
            for width in reversed(widths)
        )
        self.grow = nn.ModuleList(
            nn.Conv2d(widths[level + 1], widths[level], 3, padding=1) for level in reversed(range(len(widths) - 1))
        )
        self.leave_norm = SpatialNorm(widths[0], shape.latent_dim)
        self.leave = nn.Conv2d(widths[0], shape.channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> images [B, C, height, width] in [-1, 1], float32."""
        latents = latents.transpose(1, 2).unflatten(2, self.grid).contiguous()
        x = self.enter(latents)
        for level, blocks in enumerate(self.blocks):
            if level:
                x = self.grow[level - 1](F.interpolate(x, scale_factor=2, mode="nearest"))
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x, latents)
        return torch.tanh(self.leave(F.silu(self.leave_norm(x, latents))).float())
