"""Image encoder and decoder `vit1d`: transformers between an image and a 1-D sequence of tokens without positions.

    encoder   patches | queries      ──► transformer ──► outputs at the queries are the latents, one per token
    decoder   mask tokens | latents  ──► transformer ──► outputs at the mask tokens, one per patch, are the patches

Causal: a query attends to all patches and to previous queries; patches attend to patches. The first tokens then do not
depend on how many follow, and their order suits an autoregressive language model.

Sources: TiTok, arXiv:2406.07550; One-D-Piece, arXiv:2501.10064 (with the quantizer `tail`); causal queries: SEED,
arXiv:2307.08041.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, LayerCount
from ..layers.transformer_block import AttentionBlock
from .base import ImageShape


class ViT1DConfig(Config):
    """One side of the network."""

    kind: Literal["vit1d"] = "vit1d"
    tokens: PositiveInt = 32
    """Codes per image (times the quantizer's levels)."""
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
    order: Literal["none", "causal"] = "none"
    """Attention among the tokens. none: each to all. causal: each to itself and previous tokens; encoder only."""

    def grid(self, shape: ImageShape) -> tuple[int, int]:
        """One row of tokens; ValueError if the network does not fit the tokenizer."""
        patch_grid(self, shape)
        return 1, self.tokens


class Patched(Protocol):
    """Config of a transformer over patches."""

    @property
    def patch(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...


def patch_grid(part: Patched, shape: ImageShape) -> tuple[int, int]:
    """Rows and columns of the patches; ValueError if the network does not fit the tokenizer."""
    if shape.height % part.patch or shape.width % part.patch:
        raise ValueError(
            f"an image of {shape.height} x {shape.width} cannot be split into patches of {part.patch}; use a "
            f"patch that divides both"
        )
    if part.width % part.heads:
        raise ValueError(f"width {part.width} is not a multiple of heads {part.heads}; change one of them")
    return shape.height // part.patch, shape.width // part.patch


def join_patches(found: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Patches [B, rows * columns, C * size * size] in raster order -> images [B, C, rows * size, columns * size]."""
    cells = found.unflatten(2, (-1, size, size)).unflatten(1, grid)  # [B, rows, columns, C, size, size]
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class _Body(nn.Module):
    """Transformer blocks over patches followed by tokens."""

    def __init__(self, config: ViT1DConfig, shape: ImageShape):
        super().__init__()
        self.config = config
        self.patches = patch_grid(config, shape)
        count = self.patches[0] * self.patches[1]
        self.patch_places = nn.Parameter(0.02 * torch.randn(count, config.width))
        self.token_places = nn.Parameter(0.02 * torch.randn(config.tokens, config.width))
        self.enter_norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            AttentionBlock(config.width, config.heads, config.expansion * config.width) for _ in range(config.layers)
        )
        self.leave_norm = nn.LayerNorm(config.width)

    def run(self, patches: Tensor, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Patches [B, P, width] and tokens [B, T, width] -> [B, P + T, width]."""
        x = torch.cat([patches + self.patch_places, tokens + self.token_places], dim=1)
        x = self.enter_norm(x)
        for block in self.blocks:
            x = block(x, visible)
        return self.leave_norm(x)


class ViT1DEncoder(_Body):
    """Encoder to 1-D tokens: images to latents."""

    visible: Tensor | None

    def __init__(self, config: ViT1DConfig, shape: ImageShape):
        super().__init__(config, shape)
        self.enter = nn.Conv2d(shape.channels, config.width, config.patch, config.patch)
        self.leave = nn.Linear(config.width, shape.latent_dim)
        visible = None
        if config.order == "causal":
            patches = len(self.patch_places)
            visible = torch.ones(patches + config.tokens, patches + config.tokens, dtype=torch.bool).tril()
            visible[:patches, :patches] = True
        self.register_buffer("visible", visible, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, height, width] in [-1, 1] -> latents [B, T, latent_dim]."""
        patches = self.enter(images).flatten(2).transpose(1, 2)
        queries = patches.new_zeros(len(patches), self.config.tokens, self.config.width)
        return self.leave(self.run(patches, queries, self.visible)[:, patches.shape[1] :])


class ViT1DDecoder(_Body):
    """Decoder from 1-D tokens: latents to images."""

    def __init__(self, config: ViT1DConfig, shape: ImageShape):
        super().__init__(config, shape)
        self.enter = nn.Linear(shape.latent_dim, config.width)
        self.leave = nn.Linear(config.width, shape.channels * config.patch**2)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> images [B, C, height, width], float32, unbounded."""
        tokens = self.enter(latents)
        masks = tokens.new_zeros(len(tokens), len(self.patch_places), self.config.width)  # run() adds positions
        found = self.leave(self.run(masks, tokens)[:, : masks.shape[1]]).float()
        return join_patches(found, self.patches, self.config.patch)
