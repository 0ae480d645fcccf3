"""Proxy codes: the tokens of an image must predict the codes that another tokenizer assigns to it.

    tokens ──► memory       one query per code of the other tokenizer ──► cross-attention ──► cross-entropy

Codes are easier to predict than pixels, so the encoder and its codebook are trained first; a later stage freezes both
and trains the decoder to produce pixels. Source: TiTok's two stages, arXiv:2406.07550, section 3.3. There the head
stays, in front of the other tokenizer's decoder; here it is dropped.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.schema import LayerCount
from .base import LatentLoss, LatentLossInputs, LossConfig, LossContext, check_levels
from .decoder_blocks import check_heads, make_decoder_blocks
from .distillation import Levels
from .teachers import load_teacher


class ProxyCodesConfig(LossConfig):
    """The other tokenizer, and the head that predicts its codes."""

    kind: Literal["codes"] = "codes"
    tokenizer: str
    """Folder of the other, frozen tokenizer, for images of the same size."""
    levels: Levels = "all"
    """Levels that predict: codebook numbers, "all" for quantized latents, or "latents" for those before the
    quantizer."""
    width: PositiveInt = 128
    """Width of the head's hidden states, a multiple of heads."""
    heads: LayerCount = 4
    """Attention heads of each transformer block."""
    blocks: LayerCount = 2
    """Transformer blocks."""


class ProxyCodesLoss(LatentLoss):
    """See ProxyCodesConfig. Nats per code."""

    def __init__(self, config: ProxyCodesConfig, context: LossContext, where: str):
        super().__init__()
        check_levels(config.levels, context.num_codebooks, where)
        check_heads(config.width, config.heads, where)
        self.config = config
        other = load_teacher(config.tokenizer, context.geometry, f"{where}.tokenizer")
        # In a list, so that the frozen tokenizer is not registered: it is not trained, averaged or saved.
        self._other = [other]
        self.sizes = list(other.spec.cardinalities)
        self.read = nn.Linear(context.latent_dim, config.width)
        count = other.encode(torch.zeros(1, context.geometry.channels, *_size(context))).codes.shape[2]
        self.places = nn.Parameter(0.02 * torch.randn(count, config.width))
        self.blocks = make_decoder_blocks(config.width, config.heads, config.blocks)
        self.norm = nn.LayerNorm(config.width)
        self.guess = nn.Linear(config.width, sum(self.sizes))

    def forward(self, view: LatentLossInputs) -> Tensor:
        """See LatentLoss."""
        (other,) = self._other
        wanted = other.to(view.latents.device).encode(view.batch.media).codes.to(view.latents.device)
        memory = self.read(view.values(self.config.levels))
        h = self.places.to(memory.dtype).expand(len(memory), -1, -1)
        for block in self.blocks:
            h = block(h, memory)
        guesses = self.guess(self.norm(h)).float().split(self.sizes, dim=-1)
        losses = [
            F.cross_entropy(guess.transpose(1, 2), codes, reduction="none").mean(1)
            for guess, codes in zip(guesses, wanted.unbind(1), strict=True)
        ]
        return torch.stack(losses).mean(0)


def _size(context: LossContext) -> tuple[int, int]:
    geometry = context.geometry
    assert geometry.kind == "picture"
    return geometry.height, geometry.width
