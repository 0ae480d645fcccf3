"""Image encoder and decoder `vit`: a transformer over image patches, with one code per patch.

    encoder   patches ──► block 1 ──► .. ──► block n          latents: concatenated outputs of selected blocks
    decoder   latents ──► block 1 ──► .. ──► block n ──► patches

Features of shallow blocks keep detail, those of deep blocks are semantic; with `taps` at both depths, `branches` can
give each its own codebook. Sources: ViT-VQGAN, arXiv:2110.04627; two depths: DualToken, arXiv:2503.14324.
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
    """Side of a patch in pixels."""
    width: PositiveInt = 512
    """Width of a hidden state; a multiple of heads."""
    layers: LayerCount = 8
    """Number of transformer layers."""
    heads: LayerCount = 8
    """Attention heads of each layer."""
    expansion: PositiveInt = 4
    """Width of the MLP, in units of `width`."""
    taps: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Blocks, counted from 1, whose outputs form the latents, with equal shares of `latent_dim` in this order; null:
    the last block. Encoder only."""

    def grid(self, shape: ImageShape) -> tuple[int, int]:
        """Rows and columns of the patches; ValueError if the network does not fit the tokenizer."""
        taps = self.taps or (self.layers,)
        if max(taps) > self.layers:
            raise ValueError(f"taps has block {max(taps)}, but there are only {self.layers} layers; choose one of them")
        if shape.latent_dim % len(taps):
            raise ValueError(
                f"latent_dim {shape.latent_dim} cannot be divided among {len(taps)} taps; make it a multiple "
                f"of {len(taps)}"
            )
        return patch_grid(self, shape)


class _Body(nn.Module):
    """Transformer blocks over patches, with position embeddings."""

    def __init__(self, config: ViTConfig, shape: ImageShape):
        super().__init__()
        self.config = config
        self.grid = config.grid(shape)
        self.places = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], config.width))
        self.blocks = nn.ModuleList(
            AttentionBlock(config.width, config.heads, config.expansion * config.width) for _ in range(config.layers)
        )


class ViTEncoder(_Body):
    """ViT encoder: images to latents."""

    def __init__(self, config: ViTConfig, shape: ImageShape):
        super().__init__(config, shape)
        self.taps = config.taps or (config.layers,)
        del self.blocks[max(self.taps) :]  # later blocks are unused
        self.enter = nn.Conv2d(shape.channels, config.width, config.patch, config.patch)
        share = shape.latent_dim // len(self.taps)
        self.leave = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, share)) for _ in self.taps
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, height, width] in [-1, 1] -> latents [B, T, latent_dim], raster order."""
        x, depths = self.enter(images).flatten(2).transpose(1, 2) + self.places, []
        for block in self.blocks:
            x = block(x)
            depths.append(x)
        return torch.cat([leave(depths[tap - 1]) for tap, leave in zip(self.taps, self.leave, strict=True)], dim=-1)


class ViTDecoder(_Body):
    """ViT decoder: latents to images."""

    def __init__(self, config: ViTConfig, shape: ImageShape):
        super().__init__(config, shape)
        self.enter = nn.Linear(shape.latent_dim, config.width)
        self.leave_norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, shape.channels * config.patch**2)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> images [B, C, height, width], float32, unbounded."""
        x = self.enter(latents) + self.places
        for block in self.blocks:
            x = block(x)
        return join_patches(self.leave(self.leave_norm(x)).float(), self.grid, self.config.patch)
