"""Transformer blocks with cross-attention to the tokens, for losses that predict something from them."""

from __future__ import annotations

from torch import nn

from ...configs.schema import ConfigError


def check_heads(width: int, heads: int, where: str) -> None:
    """Raise ConfigError, which begins with `where`, if the width cannot be divided among the heads."""
    if width % heads:
        raise ConfigError(f"{where}.heads: width {width} is not a multiple of {heads} heads")


def make_decoder_blocks(width: int, heads: int, count: int) -> nn.ModuleList:
    """Pre-norm blocks; each is called with its input [B, S, D] and the tokens [B, T, D]."""
    return nn.ModuleList(
        nn.TransformerDecoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        for _ in range(count)
    )
