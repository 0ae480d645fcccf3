"""A generation step in one call of cpu_gemv.c for all blocks, or two calls per block with the KV cache in between.

Op by op, a block takes about thirty calls per step, each a few microseconds: with 4-bit weights that is longer than
reading them. If the cache only copies keys and values to a known slot (`Cache.slot`), one call computes all blocks and
the final norm. Otherwise a first call computes a block's queries, keys and values, the cache of any kind stores them
and returns what to attend to, and a second call does the rest. Both paths give the same result, up to the rounding of
the final norm: residuals and norms stay float32 within a block; between blocks and before a product they are rounded to
the dtype of the activations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.mask_types import AttentionMask
from ..kv_cache.base import Cache
from ..layers.attention_layers import CrossAttention, Memory, SelfAttention
from ..layers.feed_forward import GELU, SwiGLU
from ..layers.norm import RMSNorm
from ..layers.transformer import Block, Transformer
from . import cpu_gemv
from .cpu_gemv import NORMS, Layer, Matrix, Norm, Past
from .triton_fused_block import TritonStack, supports_device
from .weight_versions import hash_of, is_altered

NUMBERS = (torch.float32, torch.bfloat16)
KNOWN_NORMS = (RMSNorm, nn.LayerNorm)


class FusedBlock:
    """Fused steps of a block whose linear layers are packed in tiles.

    Args:
        block: referenced, not copied; it must not be moved or packed again.
    """

    def __init__(self, block: Block):
        self.block = block
        self._made_for = self._key()
        """Addresses of everything it reads, and copied numbers; None: the block has unsupported parts."""
        # Each is replaced as a whole and held by its user: several threads may generate at the same time.
        self._layer: Layer | None = None
        self._memory: tuple[Tensor, AttentionMask, Past, Tensor | None] | None = None

    def __getstate__(self) -> dict:
        """Omit the addresses: a copy has its own."""
        made_for = None if self._made_for is None else ()
        return {"block": self.block, "_layer": None, "_memory": None, "_made_for": made_for}

    def refresh(self, block: Block) -> None:
        """Describe the block again if its layers or norms have moved or changed."""
        key = self._key()
        if key != self._made_for:
            self._layer, self._made_for = None, key

    def _key(self) -> tuple | None:
        parts = _parts_of(self.block)
        return None if parts is None else (*(layer.pointers for layer in parts[0]), *map(_norm_key, parts[1]))

    @property
    def layer(self) -> Layer:
        """The block's description for cpu_gemv.c."""
        if self._layer is None:
            self._layer = self._describe()
        return self._layer

    def _describe(self) -> Layer:
        attention, cross, ffn, layer = self.block.attention, self.block.cross, self.block.ffn, Layer()
        layer.qkv, layer.out = _described(attention.qkv), _described(attention.out)
        up = ffn.gate_up if isinstance(ffn, SwiGLU) else ffn.up  # type: ignore[union-attr]
        layer.up, layer.down = _described(up), _described(ffn.down)  # type: ignore[arg-type]
        layer.kept = []
        norms = [self.block.attention_norm, attention.query_norm, attention.key_norm, None, None, self.block.ffn_norm]
        if cross is not None:
            layer.cross_query, layer.cross_out = _described(cross.query), _described(cross.out)
            norms[3:5] = self.block.cross_norm, cross.query_norm
        for name, norm in zip(NORMS, norms, strict=True):
            described, kept = described_norm(norm)
            setattr(layer, name, described)
            layer.kept += kept
        layer.kept += [buffer for part in _linears(self.block) for buffer in part.buffers()]
        layer.width, layer.gated = attention.qkv.in_features, isinstance(ffn, SwiGLU)
        layer.heads, layer.groups, layer.head_width = attention.heads, attention.kv_heads, attention.head_width
        return layer

    def supports(self, x: Tensor, table: Tensor | None, memory: Memory | None) -> bool:
        """Whether this step can use the fast path."""
        return (
            x.shape[1] == 1
            and x.shape[0] <= cpu_gemv.MAX_ROWS
            and x.dtype in NUMBERS
            and self._made_for is not None
            and (table is None or table.dtype == torch.complex64)
            and (memory is None or self.block.cross is None or memory.keys[0].dtype == x.dtype)
            and not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
        )

    def __call__(self, x: Tensor, table: Tensor | None, cache: Cache, layer: int, memory: Memory | None) -> Tensor:
        """One step: x [B, 1, D] -> [B, 1, D]; the other arguments as for `Block.forward`."""
        x = x.contiguous()
        description, library = self.layer, cpu_gemv.library()
        B, half, threads = x.shape[0], x.dtype == torch.bfloat16, torch.get_num_threads()
        H, G, E = description.heads, description.groups, description.head_width
        queries = torch.empty(B, H, 1, E)
        keys, values = x.new_empty(B, G, 1, E), x.new_empty(B, G, 1, E)
        angles = None if table is None else table.contiguous()
        stride = 0 if angles is None or angles.shape[0] == 1 else E
        status = library.project(
            description, x.data_ptr(), queries.data_ptr(), keys.data_ptr(), values.data_ptr(),
            None if angles is None else angles.data_ptr(), stride, cache.rotated_keys, B, half, threads,
        )  # fmt: skip
        cpu_gemv.check_memory(status)
        seen = cache.write(layer, keys, values)
        if seen.keys.dtype != x.dtype or not cpu_gemv.can_attend(keys, seen.keys, seen.values, seen.mask):
            return self._rest(x, queries, seen, memory, layer)
        past, _seen = cpu_gemv.past_of(seen.keys, seen.values, seen.mask)
        read, _read = (None, None) if memory is None or self.block.cross is None else self._past_of(memory, layer)
        y = torch.empty_like(x)
        status = library.finish(
            description, past, read, x.data_ptr(), queries.data_ptr(), y.data_ptr(), B, half, threads
        )
        cpu_gemv.check_memory(status)
        return y

    def _rest(self, x: Tensor, queries: Tensor, seen, memory: Memory | None, layer: int) -> Tensor:
        """The second half op by op, for keys and values that cpu_gemv.c does not support."""
        attention = self.block.attention
        mixed = attention.attend(queries.to(seen.keys.dtype), seen.keys, seen.values, seen.mask, False).to(x.dtype)
        x = x + attention.out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))
        return self.block.after_attention(x, memory, layer)

    def _past_of(self, memory: Memory, layer: int) -> tuple[Past, Tensor | None]:
        """Keys and values of the conditions, and a tensor to keep alive with them; described once per generation."""
        keys, values, mask = memory.keys[layer], memory.values[layer], memory.mask
        found = self._memory
        if found is None or found[0] is not keys or found[1] is not mask:
            self._memory = found = (keys, mask, *cpu_gemv.past_of(keys, values, mask))
        return found[2:]


class FusedStack:
    """Fused steps of all blocks and the final norm.

    Args:
        blocks: all blocks of a transformer, in order.
        last: its final norm.
    """

    def __init__(self, blocks: Sequence[FusedBlock], last: nn.Module):
        self.blocks, self.last = blocks, last
        self._made_for = self._key()
        # Replaced as a whole, as in FusedBlock.
        self._described: tuple[Any, Norm, list[Tensor]] | None = None
        self._memory: tuple[Memory, Any, list[Tensor | None]] | None = None

    def __getstate__(self) -> dict:
        """Omit the addresses: a copy has its own."""
        made_for = None if self._made_for is None else ()
        return {"blocks": self.blocks, "last": self.last, "_described": None, "_memory": None, "_made_for": made_for}

    def refresh(self, transformer: Transformer) -> None:
        """Like `FusedBlock.refresh`, after the blocks are refreshed."""
        blocks: list[Any] = [block.fused for block in transformer.blocks]
        if blocks != list(self.blocks) or self.last is not transformer.norm:
            self.blocks, self.last = blocks, transformer.norm
        key = self._key()
        if key != self._made_for:
            self._described, self._made_for = None, key

    def _key(self) -> tuple | None:
        keys = [block._made_for if isinstance(block, FusedBlock) else None for block in self.blocks]
        known = None not in keys and type(self.last) in KNOWN_NORMS and not is_altered(self.last)
        return (*keys, _norm_key(self.last)) if known else None

    def __call__(self, x: Tensor, table: Tensor | None, cache: Cache, memory: Memory | None) -> Tensor | None:
        """One step: x [B, 1, D] -> [B, 1, D], normalized. Its keys and values are written to the cache, whose `begin`
        has been called and whose `advance` must follow; None if this step has to run block by block."""
        if self._made_for is None:
            return None
        first = self.blocks[0]
        slot = cache.slot() if cache.rotated_keys and first.supports(x, table, memory) else None
        if slot is None or isinstance(slot.index, Tensor) or slot.keys.dtype != x.dtype:
            return None
        keys, values = slot.keys[0, :, :, : slot.num_seen], slot.values[0, :, :, : slot.num_seen]
        if not cpu_gemv.can_attend(keys[:, :, :1], keys, values, slot.mask):
            return None
        layers, norm, _kept = self._describe()
        past, _seen = cpu_gemv.past_of(keys, values, slot.mask)
        memories, _read = (None, None) if memory is None or first.block.cross is None else self._pasts_of(memory)
        x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        angles = None if table is None else table.contiguous()
        stride = 0 if angles is None or angles.shape[0] == 1 else first.layer.head_width
        status = cpu_gemv.library().stack(
            layers, len(self.blocks), past, slot.keys.stride(0), slot.index, memories, norm,
            x.data_ptr(), y.data_ptr(), None if angles is None else angles.data_ptr(), stride,
            len(x), x.dtype == torch.bfloat16, torch.get_num_threads(),
        )  # fmt: skip
        cpu_gemv.check_memory(status)
        return y

    def _describe(self) -> tuple[Any, Norm, list[Tensor]]:
        """Description of all layers and of the final norm for cpu_gemv.c, and tensors to keep alive with it."""
        if self._described is None:
            layers = (ctypes.POINTER(Layer) * len(self.blocks))(*(ctypes.pointer(b.layer) for b in self.blocks))
            self._described = layers, *described_norm(self.last)
        return self._described

    def _pasts_of(self, memory: Memory) -> tuple[Any, list[Tensor | None]]:
        """Keys and values of the conditions in all layers, and tensors to keep alive; described once per generation."""
        found = self._memory
        if found is None or found[0] is not memory:
            pasts = [cpu_gemv.past_of(k, v, memory.mask) for k, v in zip(memory.keys, memory.values, strict=True)]
            found = memory, (Past * len(pasts))(*(past for past, _ in pasts)), [seen for _, seen in pasts]
            self._memory = found
        return found[1:]


def fuse_all(transformer: Transformer) -> FusedStack | TritonStack | None:
    """A transformer's fused steps: on CUDA by Triton, on the CPU if all blocks are fused; None: not supported."""
    weight = next(transformer.norm.parameters(), None)
    if weight is None:  # packed adaptive norms
        return None
    if weight.is_cuda:
        return TritonStack(transformer) if supports_device(weight) else None
    blocks: list[Any] = [block.fused for block in transformer.blocks]
    return FusedStack(blocks, transformer.norm) if type(transformer.norm) in KNOWN_NORMS and all(blocks) else None


def described_norm(norm: nn.Module | None) -> tuple[Norm, list[Tensor]]:
    """Description of a norm for cpu_gemv.c, and tensors to keep alive with it."""
    if norm is None:
        return Norm(), []
    assert isinstance(norm, RMSNorm | nn.LayerNorm)
    weight = norm.weight.detach().float().contiguous()
    bias = norm.bias.detach().float().contiguous() if isinstance(norm, nn.LayerNorm) else None
    return Norm(weight.data_ptr(), None if bias is None else bias.data_ptr(), norm.eps), [
        tensor for tensor in (weight, bias) if tensor is not None
    ]


def fuse(block: Block) -> Callable[..., Tensor] | None:
    """The block's fused steps; None if it has parts that cpu_gemv.c does not support."""
    return None if _parts_of(block) is None else FusedBlock(block)


def _parts_of(block: Block) -> tuple[list[Any], list[nn.Module | None]] | None:
    """The linear layers and norms of a block; None if it has parts that cpu_gemv.c does not support."""
    attention, cross, ffn = block.attention, block.cross, block.ffn
    if (
        type(block) is not Block
        or type(attention) is not SelfAttention
        or type(cross) not in (CrossAttention, NoneType)
    ):
        return None
    if type(ffn) not in (SwiGLU, GELU) or attention.head_width % 16 or any(map(is_altered, block.modules())):
        return None
    norms = [block.attention_norm, attention.query_norm, attention.key_norm, block.cross_norm, block.ffn_norm]
    norms += [] if cross is None else [cross.query_norm]
    layers = _linears(block)
    known = all(norm is None or type(norm) in KNOWN_NORMS for norm in norms)
    return (layers, norms) if known and all(getattr(layer, "tiles", False) for layer in layers) else None


def _linears(block: Block) -> list[Any]:
    attention, cross, ffn = block.attention, block.cross, block.ffn
    layers = [attention.qkv, attention.out, *([cross.query, cross.out] if cross is not None else [])]
    return [*layers, ffn.gate_up if isinstance(ffn, SwiGLU) else ffn.up, ffn.down]  # type: ignore[union-attr]


def _norm_key(norm: Any) -> tuple:
    """Addresses of a norm's weights, or their values if cpu_gemv.c gets a copy."""
    if norm is None:
        return ()
    read = [x for x in (norm.weight, getattr(norm, "bias", None)) if x is not None]
    copied = any(x.dtype != torch.float32 or not x.is_contiguous() for x in read)
    return type(norm), norm.eps, *((hash_of(x) if copied else x.data_ptr()) for x in read)


def _described(layer: nn.Module) -> Matrix:
    return layer.described  # type: ignore[return-value]
