"""Picture parts `conditioned`: convolutions whose norms, in the decoder, are scaled and shifted place by place by the
quantized latents.

    norm(x, z) = normalised x * (1 + conv1(z enlarged)) + conv1(z enlarged)

Equal codes side by side then need not become equal patches. The encoder is that of `convolutional`.
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
    """Sized by the tokenizer's `downsamplings`, `features` and `blocks`, as `convolutional`."""

    kind: Literal["conditioned"] = "conditioned"

    def grid(self, picture: ImageShape) -> tuple[int, int]:
        """Rows and columns of the codes; ValueError where the size cannot be halved so often."""
        return halved_grid(picture)


class SpatialNorm(nn.Module):
    """See the head of this file."""

    def __init__(self, channels: int, latent_dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(min(8, channels), channels, affine=False)
        self.scale = nn.Conv2d(latent_dim, channels, 1)
        self.shift = nn.Conv2d(latent_dim, channels, 1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """[B, channels, h, w] and latents [B, latent_dim, rows, columns] -> as x."""
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
        """[B, channels, h, w] and latents [B, latent_dim, rows, columns] -> as x."""
        h = self.conv1(F.silu(self.norm1(x, latents)))
        return x + self.conv2(F.silu(self.norm2(h, latents)))


class ConditionedEncoder(ConvolutionalEncoder):
    """Pictures to latents, as `convolutional`."""

    def __init__(self, config: ConditionedConfig, picture: ImageShape):
        super().__init__(ConvolutionalConfig(), picture)


class ConditionedDecoder(nn.Module):
    """Latents to pictures; see the head of this file."""

    def __init__(self, config: ConditionedConfig, picture: ImageShape):
        super().__init__()
        self.grid = config.grid(picture)
        widths = widths_of(picture)
        self.enter = nn.Conv2d(picture.latent_dim, widths[-1], 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(ConditionedBlock(width, picture.latent_dim) for _ in range(picture.blocks))
            for width in reversed(widths)
        )
        self.grow = nn.ModuleList(
            nn.Conv2d(widths[level + 1], widths[level], 3, padding=1) for level in reversed(range(len(widths) - 1))
        )
        self.leave_norm = SpatialNorm(widths[0], picture.latent_dim)
        self.leave = nn.Conv2d(widths[0], picture.channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> pictures [B, C, height, width] in [-1, 1], float32."""
        latents = latents.transpose(1, 2).unflatten(2, self.grid).contiguous()
        x = self.enter(latents)
        for level, blocks in enumerate(self.blocks):
            if level:
                x = self.grow[level - 1](F.interpolate(x, scale_factor=2, mode="nearest"))
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x, latents)
        return torch.tanh(self.leave(F.silu(self.leave_norm(x, latents))).float())
