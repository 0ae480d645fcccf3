"""Image encoder and decoder `merged`: similar patches are merged into few tokens; the decoder attends to the tokens.

    encoder   patches ──► block ──► merge ──► block ──► merge ──► .. ──► tokens, each the mean of its merged patches
    decoder   one query per position ──► cross-attention to the tokens, several layers ──► patches

A merge splits the tokens into two alternating sets and merges the tokens of the first set that are most similar to one
of the second into it. The assignment of positions to tokens is not passed on: position embeddings are part of what is
merged, and the decoder learns to recover it.
Sources: MergeVQ, arXiv:2504.00999; the merge: ToMe, arXiv:2210.09461.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import Config, LayerCount
from ..layers.transformer_block import AttentionBlock
from .base import ImageShape
from .vit_1d import join_patches, patch_grid


class MergedConfig(Config):
    """One side of the network."""

    kind: Literal["merged"] = "merged"
    tokens: PositiveInt = 64
    """Codes per image (times the quantizer's levels)."""
    patch: PositiveInt = 16
    """Side of a patch in pixels."""
    width: PositiveInt = 512
    """Width of a hidden state; a multiple of heads."""
    layers: LayerCount = 8
    """Number of transformer layers; in the encoder, each merges at most half of the tokens."""
    heads: LayerCount = 8
    """Attention heads of each layer."""
    expansion: PositiveInt = 4
    """Width of the MLP, in units of `width`."""

    def grid(self, shape: ImageShape) -> tuple[int, int]:
        """One row of tokens; ValueError if the network does not fit the tokenizer."""
        rows, columns = patch_grid(self, shape)
        if rows * columns < self.tokens:
            raise ValueError(f"{rows * columns} patches cannot be merged to {self.tokens} tokens; use smaller patches")
        if self.merges(rows * columns)[-1] != self.tokens:
            raise ValueError(
                f"{self.layers} layers can at most halve the tokens {self.layers} times, from {rows * columns} to "
                f"{self.merges(rows * columns)[-1]}, not to {self.tokens}; use more layers or tokens"
            )
        return 1, self.tokens

    def merges(self, patches: int) -> list[int]:
        """Tokens left after each layer: a constant ratio, and never less than half of those before."""
        counts = [patches]
        for layer in range(self.layers):
            wanted = math.ceil(patches * (self.tokens / patches) ** ((layer + 1) / self.layers) - 1e-6)
            counts.append(max(wanted, self.tokens, counts[-1] // 2))
        return counts[1:]


class MergedEncoder(nn.Module):
    """Encoder with token merging: images to latents."""

    def __init__(self, config: MergedConfig, shape: ImageShape):
        super().__init__()
        config.grid(shape)
        rows, columns = patch_grid(config, shape)
        self.counts = config.merges(rows * columns)
        self.enter = nn.Conv2d(shape.channels, config.width, config.patch, config.patch)
        self.places = nn.Parameter(0.02 * torch.randn(rows * columns, config.width))
        self.blocks = nn.ModuleList(
            AttentionBlock(config.width, config.heads, config.expansion * config.width) for _ in range(config.layers)
        )
        self.leave_norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, shape.latent_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, height, width] in [-1, 1] -> latents [B, tokens, latent_dim]."""
        x = self.enter(images).flatten(2).transpose(1, 2) + self.places
        sizes = torch.ones_like(x[..., :1])
        for block, count in zip(self.blocks, self.counts, strict=True):
            x = block(x)
            x, sizes = merge(x, sizes, x.shape[1] - count)
        return self.leave(self.leave_norm(x))


def merge(x: Tensor, sizes: Tensor, lost: int) -> tuple[Tensor, Tensor]:
    """Merge `lost` of the tokens, at most half of them, into others.

    Tokens [B, T, D] and the number of patches merged into each [B, T, 1] -> [B, T - lost, D] and [B, T - lost, 1]: the
    remaining tokens of the first set in order, then the second set.
    """
    first, second = x[:, ::2], x[:, 1::2]
    if not lost:
        return x, sizes
    with torch.no_grad():
        a, b = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
        likeness, nearest = (a @ b.transpose(1, 2)).max(-1)
        order = likeness.argsort(dim=1, descending=True, stable=True)
        gone, stay = order[:, :lost], order[:, lost:].sort(dim=1).values
        into = nearest.gather(1, gone)
    weighted, number = first * sizes[:, ::2], sizes[:, ::2]
    total = second * sizes[:, 1::2]
    total = total.scatter_add(1, _over(into, total), weighted.gather(1, _over(gone, weighted)).to(total.dtype))
    count = sizes[:, 1::2].scatter_add(1, into[..., None], number.gather(1, gone[..., None]))
    kept = first.gather(1, _over(stay, first))
    return torch.cat([kept, total / count], dim=1), torch.cat([number.gather(1, stay[..., None]), count], dim=1)


def _over(index: Tensor, x: Tensor) -> Tensor:
    """Index [B, n] -> [B, n, D], to gather whole tokens."""
    return index[..., None].expand(-1, -1, x.shape[2])


class MergedDecoder(nn.Module):
    """Cross-attention decoder: latents to images."""

    def __init__(self, config: MergedConfig, shape: ImageShape):
        super().__init__()
        self.patch, self.patches = config.patch, patch_grid(config, shape)
        self.enter = nn.Linear(shape.latent_dim, config.width)
        self.places = nn.Parameter(0.02 * torch.randn(self.patches[0] * self.patches[1], config.width))
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(
                config.width,
                config.heads,
                config.expansion * config.width,
                dropout=0.0,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.leave_norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, shape.channels * config.patch**2)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, tokens, latent_dim] -> images [B, C, height, width], float32, unbounded."""
        tokens = self.enter(latents)
        x = self.places.to(tokens.dtype).expand(len(tokens), -1, -1)
        for block in self.blocks:
            x = block(x, tokens)
        return join_patches(self.leave(self.leave_norm(x)).float(), self.patches, self.patch)
