"""A small bidirectional transformer over the tokens of a condition."""

from __future__ import annotations

import torch
from torch import Tensor

from ...configs.schema import ConfigError
from ..layers.config import TransformerConfig
from ..layers.transformer import Transformer
from ..ops.rotary import rotary_table


class Encoder(Transformer):
    """Bidirectional encoder of a row's tokens; padding is masked.

    Args:
        layers: 1 or more. rope_base: of its positions, counted from the first token.
    Raises:
        ConfigError: the head width is odd.
    """

    def __init__(self, width: int, heads: int, layers: int, rope_base: float):
        if width // heads % 2:
            raise ConfigError(
                f"conditions: layers {layers} uses rotary embedding, which needs an even head width, found "
                f"{width // heads} (lm.width {width}, lm.heads {heads}); choose an even one, or layers 0"
            )
        super().__init__(TransformerConfig(width, layers, heads, kv_heads=heads, ffn=4 * width))
        self.head_width, self.rope_base = width // heads, rope_base

    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; mask [B, L], True on real tokens."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        table = rotary_table(place.unsqueeze(-1), self.head_width, self.rope_base)
        return self(tokens, table, mask=mask[:, None, None, :])
