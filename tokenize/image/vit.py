"""Picture parts `vit`: a transformer over the patches of a picture, each of which is one code.

    encoder   patches ──► block 1 ──► .. ──► block n          latents: the results of some blocks side by side
    decoder   latents ──► block 1 ──► .. ──► block n ──► patches

Features of a shallow block keep detail, those of a deep one say what is seen; with `taps` of both, `branches` gives
each a codebook of its own. Sources: ViT-VQGAN, arXiv:2110.04627; two depths: DualToken, arXiv:2503.14324.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, LayerCount
from ..layers.transformer_block import AttentionBlock
from .base import ImageShape
from .vit_1d import join_patches, patch_grid


class ViTConfig(Config):
    """One side of the network."""

    kind: Literal["vit"] = "vit"
    patch: PositiveInt = 16
    """Pixels along each side of a patch."""
    width: PositiveInt = 512
    layers: LayerCount = 8
    heads: LayerCount = 8
    expansion: PositiveInt = 4
    """Width of the MLP, in units of `width`."""
    taps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Blocks, counted from 1, whose results are the latents: equal shares of `latent_dim`, in this order; null: the
    last. In the encoder alone."""

    def grid(self, picture: ImageShape) -> tuple[int, int]:
        """Rows and columns of the patches; ValueError where the part does not fit the tokenizer."""
        taps = self.taps or (self.layers,)
        if max(taps) > self.layers:
            raise ValueError(
                f"there is no block {max(taps)} to tap, the part has {self.layers} layers; tap one of them"
            )
        if picture.latent_dim % len(taps):
            raise ValueError(
                f"latent_dim {picture.latent_dim} cannot be shared by {len(taps)} taps; make it a multiple of them"
            )
        return patch_grid(self, picture)


class _Body(nn.Module):
    """Blocks over the places of patches."""

    def __init__(self, config: ViTConfig, picture: ImageShape):
        super().__init__()
        self.config = config
        self.grid = config.grid(picture)
        self.places = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], config.width))
        self.blocks = nn.ModuleList(
            AttentionBlock(config.width, config.heads, config.expansion * config.width) for _ in range(config.layers)
        )


class ViTEncoder(_Body):
    """Pictures to latents; see the head of this file."""

    def __init__(self, config: ViTConfig, picture: ImageShape):
        super().__init__(config, picture)
        self.taps = config.taps or (config.layers,)
        del self.blocks[max(self.taps) :]  # nobody reads those behind
        self.enter = nn.Conv2d(picture.channels, config.width, config.patch, config.patch)
        share = picture.latent_dim // len(self.taps)
        self.leave = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, share)) for _ in self.taps
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, height, width] in [-1, 1] -> latents [B, T, latent_dim], raster order."""
        x, depths = self.enter(pictures).flatten(2).transpose(1, 2) + self.places, []
        for block in self.blocks:
            x, _ = block(x)
            depths.append(x)
        return torch.cat([leave(depths[tap - 1]) for tap, leave in zip(self.taps, self.leave, strict=True)], dim=-1)


class ViTDecoder(_Body):
    """Latents to pictures; see the head of this file."""

    def __init__(self, config: ViTConfig, picture: ImageShape):
        super().__init__(config, picture)
        self.enter = nn.Linear(picture.latent_dim, config.width)
        self.leave_norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, picture.channels * config.patch**2)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> pictures [B, C, height, width], float32, not bounded."""
        x = self.enter(latents) + self.places
        for block in self.blocks:
            x, _ = block(x)
        return join_patches(self.leave(self.leave_norm(x)).float(), self.grid, self.config.patch)
