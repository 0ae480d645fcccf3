"""The backbone: pre-norm transformer blocks with grouped-query attention.

The same code runs training (whole sequences, no cache), generation (new steps after a KV cache) and the bidirectional
text encoder.
Sources: LLaMA (arXiv:2302.13971) for the block, GQA (arXiv:2305.13245), QK norm (arXiv:2302.05442), adaptive norms of
DiT (arXiv:2212.09748).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..attention.mask_types import AttentionMask, PackedSequences
from ..attention.registry import Attend, sdpa
from ..kv_cache.base import Cache
from ..ops.row_rng import Dropout
from .adaptive_norm import BLOCK_VECTORS, AdaptiveNorm, Modulation, ModulationOffset, modulate
from .attention_layers import CrossAttention, L2SelfAttention, Memory, RotatedCrossAttention, SelfAttention
from .config import TransformerConfig
from .feed_forward import FEED_FORWARDS


class Block(nn.Module):
    """x + attention(norm(x)), then cross-attention if there is a memory, then the feed-forward."""

    def __init__(self, config: TransformerConfig, attend: Attend):
        super().__init__()
        self.attention_norm = config.make_norm()
        self.attention = (L2SelfAttention if config.qk_norm == "l2" else SelfAttention)(config, attend)
        self.cross_norm = config.make_norm() if config.cross else None
        cross = RotatedCrossAttention if config.cross_rotary else CrossAttention
        self.cross = cross(config, attend) if config.cross else None
        self.ffn_norm = config.make_norm()
        self.ffn = FEED_FORWARDS[config.feed_forward](config.width, config.ffn, config.bias)
        self.dropout = Dropout(config.dropout)
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
        if self.fused is not None and cache is not None and self.fused.supports(x, table, memory):
            return self.fused(x, table, cache, layer, memory)
        x = x + self.dropout(self.attention(self.attention_norm(x), table, mask, causal, cache, layer))
        return self.after_attention(x, memory, layer, table)

    def after_attention(self, x: Tensor, memory: Memory | None, layer: int, table: Tensor | None = None) -> Tensor:
        """Cross-attention and the feed-forward."""
        x = self.after_cross_attention(x, memory, layer, table)
        return x + self.dropout(self.ffn(self.ffn_norm(x)))

    def after_cross_attention(self, x: Tensor, memory: Memory | None, layer: int, table: Tensor | None) -> Tensor:
        """x with what cross-attention adds, if there is a memory."""
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            keys, values = memory.keys[layer], memory.values[layer]
            if table is not None and table.shape[1] != x.shape[1]:  # it covers the positions of the cache as well
                table = table[:, -x.shape[1] :]
            x = x + self.dropout(self.cross(self.cross_norm(x), keys, values, memory.mask, table))
        return x


class AdaptiveBlock(Block):
    """A block whose self-attention and feed-forward are modulated by a condition (adaptive_norm.py)."""

    def __init__(self, config: TransformerConfig, attend: Attend):
        super().__init__(config, attend)
        own = config.adaptive == "own"
        self.modulation = Modulation(config.width, BLOCK_VECTORS, 2) if own else ModulationOffset(config.width)

    def modulated(
        self,
        x: Tensor,
        condition: Tensor,
        table: Tensor | None,
        mask: AttentionMask,
        causal: bool,
        memory: Memory | None,
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        """`forward` with a condition [B, D], or the vectors [B, 1, 6, D] of a shared layer."""
        gate, ffn_gate, scale, ffn_scale, shift, ffn_shift = self.modulation(condition).unbind(2)
        y = modulate(self.attention_norm(x), scale, shift)
        x = x + self.dropout(self.attention(y, table, mask, causal, cache, layer) * gate)
        x = self.after_cross_attention(x, memory, layer, table)
        return x + self.dropout(self.ffn(modulate(self.ffn_norm(x), ffn_scale, ffn_shift)) * ffn_gate)


class Transformer(nn.Module):
    """Blocks and a final norm."""

    def __init__(self, config: TransformerConfig, attend: Attend = sdpa):
        super().__init__()
        block, norm = AdaptiveBlock if config.adaptive else Block, config.make_norm()
        self.blocks = nn.ModuleList(block(config, attend) for _ in range(config.layers))
        self.norm = AdaptiveNorm(config.width, norm) if config.adaptive else norm
        self.modulation = Modulation(config.width, BLOCK_VECTORS, 2) if config.adaptive == "shared" else None
        """Layer of the condition that all blocks share."""
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
        condition: Tensor | None = None,
    ) -> Tensor:
        """Transform x [B, S, D].

        Args:
            table: rotary table of the positions (`rotary_table`); None: x already encodes its positions.
            mask: bool, broadcasts to [B, H, S, M], True where a query attends to a key; or `PackedSequences` if x is
                packed (B is 1); without cache.
            causal: step s attends to steps 0..s of x; without cache and mask.
            memory: for cross-attention, from `project_memory`.
            cache: x follows its positions; the new keys and values are written to it, and it provides the attention
                mask. If its `rotated_keys` is False, the table covers its positions as well.
            condition: [B, D], read by adaptive norms; needed if the model has them.
        """
        if cache is not None:
            cache.begin(x.shape[1], table)
            table = None if table is None else table[:, -x.shape[1] :]
            if self.fused is not None and (y := self.fused(x, table, cache, memory)) is not None:
                cache.advance(1)
                return y
        read = condition if self.modulation is None or condition is None else self.modulation(condition)
        for layer, block in enumerate(self.blocks):
            if read is None:
                x = block(x, table, mask, causal, memory, cache, layer)
            else:
                x = block.modulated(x, read, table, mask, causal, memory, cache, layer)  # pyright: ignore
        if cache is not None:
            cache.advance(x.shape[1])
        return self.norm(x) if condition is None else self.norm(x, condition)

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

    def project_memory(self, memory: Tensor, mask: Tensor | PackedSequences | None) -> Memory:
        """Keys and values of the conditions' tokens [B, L, D] for every layer; mask [B, L] is True on real tokens."""
        pairs = [block.cross.project_memory(memory) for block in self.blocks]  # type: ignore[union-attr]
        seen = mask[:, None, None, :] if isinstance(mask, Tensor) else mask
        return Memory([k for k, _ in pairs], [v for _, v in pairs], seen)


def initialize_(module: nn.Module, width: int, layers: int) -> None:
    """Normal weights of std sqrt(2 / (5 width)), divided by sqrt(2 layers) for projections into the residual stream.

    Source: small init, arXiv:1910.05895; the residual scale is GPT-2's.
    """
    std = (2 / (5 * width)) ** 0.5
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2 or parameter.is_meta:  # meta parameters have no storage to fill
            continue
        into_stream = name.endswith(("out.weight", "down.weight"))
        nn.init.normal_(parameter, std=std / (2 * layers) ** 0.5 if into_stream else std)
    for part in module.modules():
        if isinstance(part, Modulation | ModulationOffset):
            part.initialize_()
