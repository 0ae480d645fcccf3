"""The backbone: pre-norm transformer blocks with grouped-query attention.

Two tables list the options within a block: `NORMS` and `FEED_FORWARDS`.

The same code runs training (whole sequences, no cache), generation (new steps after a KV cache) and the bidirectional
text encoder.
Sources: LLaMA (arXiv:2302.13971) for the block, GQA (arXiv:2305.13245), QK norm (arXiv:2302.05442).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.mask_types import AttentionMask, PackedSequences
from ..attention.registry import Attend
from ..kv_cache.base import Cache
from ..ops.fused_autograd import gated, normed
from ..ops.linear import Linear
from ..ops.rotary import at_least_float32, rotate
from ..ops.row_rng import Dropout

NormName = Literal["rms", "layer"]
FeedForwardName = Literal["swiglu", "gelu"]


@dataclass(frozen=True)
class Memory:
    """Keys and values of the conditions for cross-attention, computed once."""

    keys: list[Tensor]
    """Per layer [B, G, L, E]."""
    values: list[Tensor]
    mask: Tensor | PackedSequences | None
    """[B, 1, 1, L] bool, True on real tokens; None: all are real. `PackedSequences` if the tokens of all rows are
    packed (B is then 1)."""


class Table(nn.Module):
    """Learned embedding table. nn.Embedding would initialize it on creation, which takes seconds on the meta device."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class SpecialVectors(Table):
    """Learned embeddings of special ids: ids [B, K, S] -> [B, S, width], summed over the codebooks that hold one."""

    cardinalities: Tensor
    starts: Tensor

    def __init__(self, cardinalities: Sequence[int], num_specials: int, width: int):
        K = len(cardinalities)
        super().__init__(K * num_specials, width)
        starts = torch.arange(K, device="cpu")[:, None] * num_specials
        self.register_buffer("cardinalities", torch.tensor(cardinalities, device="cpu")[:, None], persistent=False)
        self.register_buffer("starts", starts, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        beyond = (ids - self.cardinalities).transpose(1, 2)
        rows = beyond.clamp(min=0) + self.starts[:, 0]
        return super().forward(rows).masked_fill((beyond < 0).unsqueeze(-1), 0.0).sum(dim=2)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normed(at_least_float32(x), self.weight, self.eps).to(x.dtype)


NORMS: dict[str, Callable[[int, float], nn.Module]] = {"rms": RMSNorm, "layer": nn.LayerNorm}
"""Built as NORMS[name](width, eps). "layer" subtracts the mean first, and has a bias."""


class SelfAttention(nn.Module):
    """Grouped-query self-attention."""

    def __init__(self, width: int, heads: int, kv_heads: int, qk_norm: bool, attend: Attend):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.attend = attend
        self.qkv = Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=False)
        self.query_norm = RMSNorm(self.head_width) if qk_norm else None
        self.key_norm = RMSNorm(self.head_width) if qk_norm else None
        self.out = Linear(heads * self.head_width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        table: Tensor | None,
        mask: AttentionMask,
        causal: bool,
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        B, S, _ = x.shape
        H, G = self.heads, self.kv_heads
        heads_BSHE = self.qkv(x).view(B, S, H + 2 * G, self.head_width)
        # split instead of slices: its backward concatenates gradients, while each slice allocates a tensor of zeros
        turned, values = heads_BSHE.split([H + G, G], dim=2)
        values = values.transpose(1, 2)
        if self.query_norm is not None and self.key_norm is not None:
            turned = torch.cat([self.query_norm(turned[:, :, :H]), self.key_norm(turned[:, :, H:])], dim=2)
        if table is not None:
            if cache is None or cache.turned:
                turned = rotate(turned, table)
            else:
                turned = torch.cat([rotate(turned[:, :, :H], table), turned[:, :, H:]], dim=2)
        queries, keys = (x.transpose(1, 2) for x in turned.split([H, G], dim=2))
        if cache is not None:
            keys, values, mask, causal = cache.write(layer, keys, values)
        mixed = self.attend(queries, keys, values, mask, causal)
        return self.out(mixed.transpose(1, 2).reshape(B, S, -1))


class CrossAttention(nn.Module):
    """Cross-attention to the conditions; `remember` computes keys and values once per generation."""

    def __init__(self, width: int, heads: int, kv_heads: int, qk_norm: bool, attend: Attend):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.attend = attend
        self.query = Linear(width, heads * self.head_width, bias=False)
        self.key_value = Linear(width, 2 * kv_heads * self.head_width, bias=False)
        self.query_norm = RMSNorm(self.head_width) if qk_norm else None
        self.key_norm = RMSNorm(self.head_width) if qk_norm else None
        self.out = Linear(heads * self.head_width, width, bias=False)

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, L, E] of memory [B, L, D]."""
        B, L, _ = memory.shape
        keys, values = self.key_value(memory).view(B, L, 2 * self.kv_heads, self.head_width).chunk(2, dim=2)
        if self.key_norm is not None:
            keys = self.key_norm(keys)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask) -> Tensor:
        B, S, _ = x.shape
        queries = self.query(x).view(B, S, self.heads, self.head_width)
        if self.query_norm is not None:
            queries = self.query_norm(queries)
        mixed = self.attend(queries.transpose(1, 2), keys, values, mask, False)
        return self.out(mixed.transpose(1, 2).reshape(B, S, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.gate_up(x)))


class GELU(nn.Module):
    """down(gelu(up(x))), the exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = Linear(width, hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


FEED_FORWARDS: dict[str, Callable[[int, int], nn.Module]] = {"swiglu": SwiGLU, "gelu": GELU}
"""Built as FEED_FORWARDS[name](width, hidden)."""


class Block(nn.Module):
    """x + attention(norm(x)), then cross-attention if there is a memory, then the feed-forward."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        ffn: int,
        qk_norm: bool,
        dropout: float,
        cross: bool,
        attend: Attend,
        norm: NormName,
        norm_eps: float,
        feed_forward: FeedForwardName,
    ):
        super().__init__()
        self.attention_norm = NORMS[norm](width, norm_eps)
        self.attention = SelfAttention(width, heads, kv_heads, qk_norm, attend)
        self.cross_norm = NORMS[norm](width, norm_eps) if cross else None
        self.cross = CrossAttention(width, heads, kv_heads, qk_norm, attend) if cross else None
        self.ffn_norm = NORMS[norm](width, norm_eps)
        self.ffn = FEED_FORWARDS[feed_forward](width, ffn)
        self.dropout = Dropout(dropout)
        self.fused: Any = None
        """Fast path of single steps with packed weights: a `FusedBlock` (lm/kernels/cpu_fused_block.py)."""

    def forward(
        self,
        x: Tensor,
        table: Tensor | None,
        mask: AttentionMask,
        causal: bool,
        memory: Memory | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        if self.fused is not None and cache is not None and self.fused.takes(x, table, memory):
            return self.fused(x, table, cache, layer, memory)
        x = x + self.dropout(self.attention(self.attention_norm(x), table, mask, causal, cache, layer))
        return self.after_attention(x, memory, layer)

    def after_attention(self, x: Tensor, memory: Memory | None, layer: int) -> Tensor:
        """Cross-attention and the feed-forward."""
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), memory.keys[layer], memory.values[layer], memory.mask))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class Transformer(nn.Module):
    """Blocks and a final norm."""

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        ffn: int,
        qk_norm: bool,
        dropout: float,
        cross: bool,
        attend: Attend,
        norm: NormName = "rms",
        norm_eps: float = 1e-6,
        feed_forward: FeedForwardName = "swiglu",
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, kv_heads, ffn, qk_norm, dropout, cross, attend, norm, norm_eps, feed_forward)
            for _ in range(layers)
        )
        self.norm = NORMS[norm](width, norm_eps)
        self.fused: Any = None
        """Fast path of single steps: a `FusedStack` (lm/kernels/cpu_fused_block.py) or a compatible callable."""

    def forward(
        self,
        x: Tensor,
        table: Tensor | None = None,
        mask: AttentionMask = None,
        causal: bool = False,
        memory: Memory | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Transform x [B, S, D].

        Args:
            table: rotary table of the positions (`rotary_table`); None: x already encodes its positions.
            mask: bool, broadcasts to [B, H, S, M], True where a query attends to a key; or `PackedSequences` if x is
                packed (B is 1); without cache.
            causal: step s attends to steps 0..s of x; without cache and mask.
            memory: for cross-attention, from `remember`.
            cache: x follows its positions; the new keys and values are written to it, and it provides the attention
                mask. If it is not `turned`, the table covers its positions as well.
        """
        if cache is not None:
            cache.begin(x.shape[1], table)
            table = None if table is None else table[:, -x.shape[1] :]
            if self.fused is not None and (y := self.fused(x, table, cache, memory)) is not None:
                cache.advance(1)
                return y
        for layer, block in enumerate(self.blocks):
            x = block(x, table, mask, causal, memory, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x)

    def refresh(self) -> None:
        """Update everything derived from the weights; called before a generation."""
        for part in (*self.blocks, self):
            refresh = getattr(part.fused, "refresh", None)
            if refresh is not None:
                refresh(part)

    def train(self, mode: bool = True) -> Transformer:
        """Like `nn.Module.train`; switching to training mode drops derived copies of the weights."""
        if mode:
            self.fused = None
        return super().train(mode)

    def remember(self, memory: Tensor, mask: Tensor | PackedSequences | None) -> Memory:
        """Keys and values of the conditions' tokens [B, L, D] for every layer; mask [B, L] is True on real tokens."""
        pairs = [block.cross.remember(memory) for block in self.blocks]  # type: ignore[union-attr]
        seen = mask[:, None, None, :] if isinstance(mask, Tensor) else mask
        return Memory([k for k, _ in pairs], [v for _, v in pairs], seen)


def initialise_(module: nn.Module, width: int, layers: int) -> None:
    """Normal weights of std sqrt(2 / (5 width)), divided by sqrt(2 layers) for projections into the residual stream.

    Source: small init, arXiv:1910.05895; the residual scale is GPT-2's.
    """
    std = (2 / (5 * width)) ** 0.5
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2 or parameter.is_meta:  # meta parameters have no storage to fill
            continue
        into_stream = name.endswith(("out.weight", "down.weight"))
        nn.init.normal_(parameter, std=std / (2 * layers) ** 0.5 if into_stream else std)
