"""The backbone: pre-norm transformer blocks with grouped-query attention.

Two tables hold the choices inside a block: `NORMS` and `FEED_FORWARDS`.

One code path serves training (a whole sequence, no cache), generation (new steps behind a cache) and the bidirectional
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
    """What cross-attention reads: keys and values of the conditions, computed once."""

    keys: list[Tensor]
    """For each layer [B, G, L, E]."""
    values: list[Tensor]
    mask: Tensor | PackedSequences | None
    """[B, 1, 1, L] bool, True on real tokens; None: all are. `PackedSequences` where the tokens of all rows stand end
    to end (B is 1 then)."""


class Table(nn.Module):
    """Learned rows, looked up by id. nn.Embedding would fill them at once, which takes seconds on the meta device."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class SpecialVectors(Table):
    """Learned vectors of special ids: ids [B, K, S] -> [B, S, width], summed over the codebooks that hold one."""

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
"""Made as NORMS[name](width, eps). "layer" takes the mean off first, and has a bias."""


class SelfAttention(nn.Module):
    """Grouped-query attention of a sequence to itself."""

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
        # split, not slices: gradients of pieces are laid side by side, those of slices each in a tensor of zeros
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
    """Attention to the conditions' memory; keys and values are made by `remember`, once for a whole generation."""

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
"""Made as FEED_FORWARDS[name](width, hidden)."""


class Block(nn.Module):
    """x + attention(norm(x)), then cross-attention where there is a memory, then the feed-forward."""

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
        """Single steps in another way, for packed weights: a `FusedBlock` (lm/kernels/cpu_fused_block.py)."""

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
    """Blocks and a last norm."""

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
        """Single steps of all blocks in another way: a `FusedStack` (lm/kernels/cpu_fused_block.py) or what is
        called like one."""

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
            table: the positions' turns (`rotary_table`); None: x says its positions itself.
            mask: bool, broadcasts to [B, H, S, M], True where a key is seen; or `PackedSequences`: x is rows laid end
                to end (B is 1); without cache.
            causal: step s sees steps 0..s of x; without cache and mask.
            memory: for cross-attention, from `remember`.
            cache: x stands behind its positions; the new keys are written into it, and it says what x sees. Where it is
                not `turned`, the table covers its positions as well.
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
        """Bring what was made of the weights up to date with them; asked for before a generation."""
        for part in (*self.blocks, self):
            refresh = getattr(part.fused, "refresh", None)
            if refresh is not None:
                refresh(part)

    def train(self, mode: bool = True) -> Transformer:
        """As `nn.Module.train`; going into training, forget copies of the weights as they were."""
        if mode:
            self.fused = None
        return super().train(mode)

    def remember(self, memory: Tensor, mask: Tensor | PackedSequences | None) -> Memory:
        """Every layer's keys and values of the conditions' tokens [B, L, D]; mask [B, L] is True on real ones."""
        pairs = [block.cross.remember(memory) for block in self.blocks]  # type: ignore[union-attr]
        seen = mask[:, None, None, :] if isinstance(mask, Tensor) else mask
        return Memory([k for k, _ in pairs], [v for _, v in pairs], seen)


def initialise_(module: nn.Module, width: int, layers: int) -> None:
    """Normal weights of std sqrt(2 / (5 width)); matrices that write into the residual stream are smaller by sqrt(2
    layers).

    Source: small init, arXiv:1910.05895; the residual scale is GPT-2's.
    """
    std = (2 / (5 * width)) ** 0.5
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2 or parameter.is_meta:  # without memory there is nothing to fill
            continue
        into_stream = name.endswith(("out.weight", "down.weight"))
        nn.init.normal_(parameter, std=std / (2 * layers) ** 0.5 if into_stream else std)
