"""Picture parts `merged`: patches that look alike become one token, until few are left; places find them again.

    encoder   patches ──► block ──► merge ──► block ──► merge ──► .. ──► tokens, each the mean of all it was merged from
    decoder   one query a place ──► cross-attention to the tokens, a few times ──► patches

A merge halves the tokens into every first and every second one, and adds those of the first that are most like one of
the second to it. Which places a token stands for is not handed on: places are a part of what is merged, and the decoder
learns to find them.
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
    """Codes of a picture (times the quantizer's levels)."""
    patch: PositiveInt = 16
    """Pixels along each side of a patch."""
    width: PositiveInt = 512
    layers: LayerCount = 8
    heads: LayerCount = 8
    expansion: PositiveInt = 4
    """Width of the MLP, in units of `width`."""

    def grid(self, picture: ImageShape) -> tuple[int, int]:
        """One row of tokens; ValueError where the part does not fit the tokenizer."""
        rows, columns = patch_grid(self, picture)
        if rows * columns < self.tokens:
            raise ValueError(f"{rows * columns} patches cannot be merged to {self.tokens} tokens; use smaller patches")
        if self.merges(rows * columns)[-1] != self.tokens:
            raise ValueError(
                f"{self.layers} layers can at most halve the tokens {self.layers} times, from {rows * columns} to "
                f"{self.merges(rows * columns)[-1]}, not to {self.tokens}; use more layers or tokens"
            )
        return 1, self.tokens

    def merges(self, patches: int) -> list[int]:
        """How many tokens are left after each layer: the same share of them, and never less than half."""
        counts = [patches]
        for layer in range(self.layers):
            wanted = math.ceil(patches * (self.tokens / patches) ** ((layer + 1) / self.layers) - 1e-6)
            counts.append(max(wanted, self.tokens, counts[-1] // 2))
        return counts[1:]


class MergedEncoder(nn.Module):
    """Pictures to latents; see the head of this file."""

    def __init__(self, config: MergedConfig, picture: ImageShape):
        super().__init__()
        config.grid(picture)
        rows, columns = patch_grid(config, picture)
        self.counts = config.merges(rows * columns)
        self.enter = nn.Conv2d(picture.channels, config.width, config.patch, config.patch)
        self.places = nn.Parameter(0.02 * torch.randn(rows * columns, config.width))
        self.blocks = nn.ModuleList(
            AttentionBlock(config.width, config.heads, config.expansion * config.width) for _ in range(config.layers)
        )
        self.leave_norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, picture.latent_dim)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, height, width] in [-1, 1] -> latents [B, tokens, latent_dim]."""
        x = self.enter(pictures).flatten(2).transpose(1, 2) + self.places
        sizes = torch.ones_like(x[..., :1])
        for block, count in zip(self.blocks, self.counts, strict=True):
            x, _ = block(x)
            x, sizes = merge(x, sizes, x.shape[1] - count)
        return self.leave(self.leave_norm(x))


def merge(x: Tensor, sizes: Tensor, lost: int) -> tuple[Tensor, Tensor]:
    """Merge `lost` of the tokens, at most half of them, into others.

    Tokens [B, T, D], and how many patches each stands for [B, T, 1] -> [B, T - lost, D] and [B, T - lost, 1]: those of
    the first half that stay, in order, then the second half.
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
    """[B, n] -> [B, n, D], for gathering whole tokens."""
    return index[..., None].expand(-1, -1, x.shape[2])


class MergedDecoder(nn.Module):
    """Latents to pictures; see the head of this file."""

    def __init__(self, config: MergedConfig, picture: ImageShape):
        super().__init__()
        self.patch, self.patches = config.patch, patch_grid(config, picture)
        self.enter = nn.Linear(picture.latent_dim, config.width)
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
        self.leave = nn.Linear(config.width, picture.channels * config.patch**2)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, tokens, latent_dim] -> pictures [B, C, height, width], float32, not bounded."""
        tokens = self.enter(latents)
        x = self.places.to(tokens.dtype).expand(len(tokens), -1, -1)
        for block in self.blocks:
            x = block(x, tokens)
        return join_patches(self.leave(self.leave_norm(x)).float(), self.patches, self.patch)
