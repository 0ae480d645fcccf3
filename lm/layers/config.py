"""Config of a transformer: the sizes and options of its blocks (tables: `NORMS`, `FEED_FORWARDS`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from .adaptive_norm import AdaptiveName
from .feed_forward import FeedForwardName
from .norm import NORMS, NormName, make_plain_layer_norm

QKNorm = bool | Literal["l2"]
"""True: RMS norm with weights. l2: length 1, times a learned factor for each head."""


@dataclass(frozen=True)
class TransformerConfig:
    """Size and options of a transformer."""

    width: int
    """Width of a hidden state, D."""
    layers: int
    heads: int
    """H."""
    kv_heads: int
    """G."""
    ffn: int
    """Width of the feed-forward layer."""
    qk_norm: QKNorm = False
    """Normalize queries and keys of each head."""
    dropout: float = 0.0
    cross: bool = False
    """Cross-attention in every block."""
    cross_rotary: bool = False
    """Rotate the queries of cross-attention."""
    norm: NormName = "rms"
    norm_eps: float = 1e-6
    feed_forward: FeedForwardName = "swiglu"
    head_dim: int | None = None
    """E if it is not width / heads."""
    qkv_bias: bool = False
    """Queries, keys and values of the self-attention have a bias."""
    bias: bool = False
    """The output of self-attention and both layers of the feed-forward have a bias."""
    adaptive: AdaptiveName | None = None
    """Adaptive norms, which read a condition; None: norms with weights of their own."""

    @property
    def head_width(self) -> int:
        """E."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    def make_norm(self) -> nn.Module:
        """A normalization of the hidden state; without weights if a condition modulates it."""
        if self.adaptive is not None:
            return make_plain_layer_norm(self.width, self.norm_eps)
        return NORMS[self.norm](self.width, self.norm_eps)
