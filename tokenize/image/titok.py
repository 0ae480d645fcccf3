"""Image encoder and decoder `titok`: TiTok as published, between an image and a 1-D sequence of tokens.

    encoder   class | patches | queries      ──► transformer ──► outputs at the queries are the latents, one per token
    decoder   class | mask tokens | latents  ──► transformer ──► outputs at the mask tokens ──► images, by `pixels`:
              null: a linear layer gives the pixels of each patch, a conv3 smooths the image
              else: scores over the codes of a MaskGIT-VQGAN; its decoder takes the mean of the code vectors, weighted
              by the softmax of the scores

`vit1d` (vit_1d.py) is the same idea with fewer parts; this one is for published weights.
Source: TiTok, arXiv:2406.07550, as in bytedance/1d-tokenizer (Apache-2.0), modeling/titok.py and modules/blocks.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, LayerCount
from ..layers.transformer_block import AttentionBlock
from .base import ImageShape
from .maskgit import MaskGITConfig, MaskGITDecoder
from .vit_1d import join_patches, patch_grid


class TiTokConfig(Config):
    """One side of the network."""

    kind: Literal["titok"] = "titok"
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
    latents: Literal["transposed", "reshaped"] = "transposed"
    """Encoder only: how the tokens' hidden states [tokens, width] become columns, from each of which a latent is
    projected. transposed: column t is the state of token t. reshaped: the same numbers, row after row, in the shape
    [width, tokens], so that a latent is of numbers of all tokens; the models of the paper were trained so."""
    pixels: MaskGITConfig | None = None
    """Decoder only: the network from the outputs to images; null: a linear layer per patch, and a conv3."""

    def grid(self, shape: ImageShape) -> tuple[int, int]:
        """One row of tokens; ValueError if the network does not fit the tokenizer."""
        patch_grid(self, shape)
        if self.pixels is not None:
            self.pixels.check(self.patch)
        return 1, self.tokens


class _Body(nn.Module):
    """Transformer blocks over a class token, patches and tokens."""

    def __init__(self, config: TiTokConfig, shape: ImageShape):
        super().__init__()
        self.config = config
        self.patches = patch_grid(config, shape)
        count = self.patches[0] * self.patches[1]
        self.class_token = nn.Parameter(0.02 * torch.randn(1, config.width))
        self.patch_places = nn.Parameter(0.02 * torch.randn(count + 1, config.width))
        self.token_places = nn.Parameter(0.02 * torch.randn(config.tokens, config.width))
        self.enter_norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            AttentionBlock(config.width, config.heads, 4 * config.width) for _ in range(config.layers)
        )
        self.leave_norm = nn.LayerNorm(config.width)

    def run(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [B, P, width] and tokens [B, T, width] -> outputs of the same shapes."""
        first = self.class_token.expand(len(patches), 1, -1)
        x = torch.cat([torch.cat([first, patches], dim=1) + self.patch_places, tokens + self.token_places], dim=1)
        x = self.enter_norm(x)
        for block in self.blocks:
            x = block(x)
        x = self.leave_norm(x)
        return x[:, 1 : 1 + patches.shape[1]], x[:, 1 + patches.shape[1] :]


class TiTokEncoder(_Body):
    """TiTok's encoder: images to latents."""

    def __init__(self, config: TiTokConfig, shape: ImageShape):
        super().__init__(config, shape)
        self.enter = nn.Conv2d(shape.channels, config.width, config.patch, config.patch)
        self.queries = nn.Parameter(0.02 * torch.randn(config.tokens, config.width))
        self.leave = nn.Linear(config.width, shape.latent_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, height, width] in [-1, 1] -> latents [B, T, latent_dim]."""
        patches = self.enter((images + 1) / 2).flatten(2).transpose(1, 2)  # published weights read pixels from 0 to 1
        _, x = self.run(patches, self.queries.expand(len(patches), -1, -1))
        if self.config.latents == "reshaped":
            x = x.flatten(1).unflatten(1, (self.config.width, self.config.tokens)).transpose(1, 2)
        return self.leave(x)


class PatchPixels(nn.Module):
    """A linear layer to the pixels of each patch, and a conv3 over the image."""

    def __init__(self, config: TiTokConfig, grid: tuple[int, int], channels: int):
        super().__init__()
        self.grid, self.patch = grid, config.patch
        self.leave = nn.Linear(config.width, channels * config.patch**2)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, width] -> images [B, C, height, width], about 0..1."""
        return self.smooth(join_patches(self.leave(x), self.grid, self.patch))


class MixedCodes(nn.Module):
    """Scores over codes, the mean of the code vectors by their softmax, and the decoder of the codes."""

    def __init__(self, config: TiTokConfig, pixels: MaskGITConfig, grid: tuple[int, int], channels: int):
        super().__init__()
        self.grid = grid
        self.widen = nn.Linear(config.width, 2 * config.width)
        self.score = nn.Linear(2 * config.width, pixels.codes)
        self.codebook = nn.Parameter(torch.randn(pixels.codes, pixels.code_dim))
        self.pixels = MaskGITDecoder(pixels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, width] -> images [B, C, height, width], about 0..1."""
        scores = self.score(torch.tanh(self.widen(x)))  # [B, P, codes]
        mixed = torch.softmax(scores.float(), dim=-1) @ self.codebook
        return self.pixels(mixed.transpose(1, 2).unflatten(2, self.grid).contiguous())


class TiTokDecoder(_Body):
    """TiTok's decoder: latents to images."""

    def __init__(self, config: TiTokConfig, shape: ImageShape):
        super().__init__(config, shape)
        self.enter = nn.Linear(shape.latent_dim, config.width)
        self.mask = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        if config.pixels is None:
            self.head: nn.Module = PatchPixels(config, self.patches, shape.channels)
        else:
            self.head = MixedCodes(config, config.pixels, self.patches, shape.channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, T, latent_dim] -> images [B, C, height, width], float32, unbounded."""
        masks = self.mask.expand(len(latents), len(self.patch_places) - 1, -1)
        x, _ = self.run(masks, self.enter(latents))
        return 2 * self.head(x).float() - 1
