"""A small bidirectional transformer over the tokens of a condition, and the steps that all token sequences share."""

from __future__ import annotations

import torch
from torch import Tensor

from ...configs.schema import ConfigError
from ..layers.config import TransformerConfig
from ..layers.transformer import Transformer
from ..ops.rotary import rotary_table
from .padding import add_positions, mask_or_none, with_null


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
        index = torch.arange(tokens.shape[1], device=tokens.device)
        table = rotary_table(index.unsqueeze(-1), self.head_width, self.rope_base)
        return self(tokens, table, mask=mask[:, None, None, :])


def encode_sequence(
    tokens: Tensor, lengths: Tensor, null: Tensor, position_scale: Tensor | None, encoder: Encoder | None
) -> tuple[Tensor, Tensor | None]:
    """The tokens [B, L, D] of a condition whose rows have lengths [B], and their mask [B, L] (None: all are real).

    Args:
        null: [1, D], the only token of a row of length 0.
        position_scale: [1], scale of the position embeddings that are added; None: none are.
        encoder: applied last; None: none.
    """
    tokens, mask = with_null(tokens, lengths, null)
    if position_scale is not None:
        tokens = add_positions(tokens, position_scale)
    if encoder is not None:
        tokens = encoder.read(tokens, mask)
    return tokens, mask_or_none(mask)
