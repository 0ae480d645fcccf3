"""The int8 and int4 kinds of cache: old steps in 8 or 4 bits, recent ones and the conditions in full precision.

Keys vary more between channels than between steps, values the other way round, so keys have one scale per channel for a
group of steps, and values one scale per step. Keys are quantized before rotation (which mixes channels) and rotated
when they are read. For groups of 2 steps and 3 recent ones, after 8 steps:

    prefix | [s0 s1] [s2 s3] | s4 s5 s6 s7        the next step makes a group of s4 and s5

Sources: KIVI (arXiv:2402.02750) for the axes and the recent window, KVQuant (arXiv:2401.18079) for keys before rotation
and a few outliers of each vector in full precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.masks import causal_mask
from ..ops.rotary import rotate
from .base import AttentionInputs, CacheShape, cannot_rewind, seen_in_order
from .config import Int4CacheConfig, Int8CacheConfig


@dataclass(frozen=True)
class QuantizedVectors:
    """Vectors [*, n], each with its own scale: number i is zero + codes[i] * scale, except for outliers."""

    codes: Tensor
    """[*, n] uint8; for 4 bits two per byte, [*, ceil(n / 2)], the first half of the vector in the low bits."""
    scale: Tensor
    """[*, 1] float16."""
    zero: Tensor
    """[*, 1] float16."""
    outliers: Tensor
    """[*, o] float16."""
    places: Tensor
    """[*, o] uint8 or int16: indices of the outliers in the vector."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors."""
        return self.codes, self.scale, self.zero, self.outliers, self.places


def quantize(x: Tensor, bits: int, outliers: int = 0) -> QuantizedVectors:
    """Round the vectors x [*, n] to 2 ** bits evenly spaced values between their smallest and largest number.

    Args:
        bits: 8 or 4.
        outliers: how many numbers of each vector, those furthest from its mean, are kept and excluded from the range.
    """
    n = x.shape[-1]
    wide = x if x.dtype == torch.float64 else x.float()
    places = (wide - wide.mean(dim=-1, keepdim=True)).abs().topk(outliers, dim=-1).indices
    kept = wide.gather(-1, places)
    is_kept = torch.zeros_like(wide, dtype=torch.bool).scatter_(-1, places, True)
    low = wide.masked_fill(is_kept, torch.inf).amin(dim=-1, keepdim=True)
    high = wide.masked_fill(is_kept, -torch.inf).amax(dim=-1, keepdim=True)
    zero = low.half()
    scale = ((high - zero) / (2**bits - 1)).half()
    steps = torch.where(scale > 0, scale, 1).to(wide.dtype)
    codes = ((wide - zero) / steps).round().clamp(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        low_half, high_half = F.pad(codes, (0, n % 2)).chunk(2, dim=-1)
        codes = low_half | (high_half << 4)
    return QuantizedVectors(codes, scale, zero, kept.half(), places.to(torch.uint8 if n <= 256 else torch.int16))


def dequantize(q: QuantizedVectors, n: int, bits: int, dtype: torch.dtype) -> Tensor:
    """The vectors [*, n], as rounded by quantization."""
    codes = q.codes if bits == 8 else torch.cat([q.codes & 15, q.codes >> 4], dim=-1)[..., :n]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.addcmul(q.zero.to(wide), codes.to(wide), q.scale.to(wide))
    if q.places.shape[-1]:
        x.scatter_(-1, q.places.long(), q.outliers.to(wide))
    return x.to(dtype)


class QuantizedStore:
    """Storage for quantized vectors, [layers, B, G, count, *shape, n]."""

    def __init__(self, shape: CacheShape, count: int, vectors: tuple[int, ...], bits: int, outliers: int):
        *rows, n = vectors
        self.n, self.bits, self.outliers, self.dtype = n, bits, min(outliers, n - 1), shape.dtype
        example = quantize(torch.zeros(*rows, n), bits, self.outliers)
        self.storage = [shape.empty(count, *t.shape, dtype=t.dtype) for t in example.tensors()]

    @property
    def bytes(self) -> int:
        """Memory."""
        return sum(tensor.nbytes for tensor in self.storage)

    def put(self, layer: int, first: int, x: Tensor) -> None:
        """Quantize x [B, G, c, *shape, n] into the slots first .. first + c - 1."""
        found = quantize(x, self.bits, self.outliers).tensors()
        for storage, tensor in zip(self.storage, found, strict=True):
            storage[layer, :, :, first : first + x.shape[2]] = tensor

    def put_where(self, is_due: Tensor, layer: int, first: Tensor, x: Tensor) -> None:
        """`put` at a slot given as a tensor [] if is_due, bool []; else nothing changes."""
        found = quantize(x, self.bits, self.outliers).tensors()
        places = first + torch.arange(x.shape[2], device=x.device)
        for storage, tensor in zip(self.storage, found, strict=True):
            own = storage[layer]
            own.index_copy_(2, places, torch.where(is_due, tensor, own.index_select(2, places)))

    def get(self, layer: int, count: int) -> Tensor:
        """The first `count` vectors, [B, G, count, *shape, n]."""
        held = QuantizedVectors(*(storage[layer, :, :, :count] for storage in self.storage))
        return dequantize(held, self.n, self.bits, self.dtype)


class QuantizedCache:
    """The conditions' prefix and the recent steps in full precision, older steps quantized.

    Which steps are quantized depends only on the number of steps: after s steps the first
    (s - recent) // group * group. Steps written together attend to each other in full precision.

    If `position` is set, recent steps are in a ring buffer (step s in slot s mod R, after the prefix), and a group is
    quantized at every step but stored only when due, so that nothing depends on the step.
    """

    rotated_keys = False

    def __init__(self, config: Int8CacheConfig | Int4CacheConfig, shape: CacheShape):
        self.kind, bits = config.kind, {"int8": 8, "int4": 4}[config.kind]
        self.group, self.recent = config.group, config.recent
        self.length = 0
        """Positions read so far."""
        E, max_quantized = shape.head_width, self._num_quantized(shape.num_steps)
        self.ring = self.recent + self.group
        """R, slots of the ring buffer."""
        self._max_quantized = max_quantized
        self.keys = QuantizedStore(shape, max_quantized // self.group, (E, self.group), bits, config.outliers)
        self.values = QuantizedStore(shape, max_quantized, (E,), bits, config.outliers)
        pending = min(shape.num_steps, self.recent + self.group - 1)
        self.exact_keys = shape.empty(shape.prefix_length + pending, E)
        """[layers, B, G, slots, E]: the prefix, then the steps that are not quantized, before rotation."""
        self.exact_values = torch.zeros_like(self.exact_keys)
        self._shape, self._table = shape, None
        self._position: Tensor | None = None
        self._mask: Tensor | None = None
        self._causal = False

    def parts(self) -> tuple:
        """All tensors it holds."""
        return self.keys.storage, self.values.storage, self.exact_keys, self.exact_values, self._position

    @property
    def position(self) -> Tensor | None:
        """Positions so far, long []; None: `length` counts."""
        return self._position

    @position.setter
    def position(self, position: Tensor) -> None:
        shape, P, steps = self._shape, self._shape.prefix_length, self.length - self._shape.prefix_length
        pending = torch.arange(self._num_quantized(steps), steps, device=shape.device)
        for name in ("exact_keys", "exact_values"):
            old = getattr(self, name)
            ring = shape.empty(P + self.ring, shape.head_width)
            ring[:, :, :, :P] = old[:, :, :, :P]
            ring[:, :, :, P + pending % self.ring] = old[:, :, :, P : P + len(pending)]
            setattr(self, name, ring)
        self._position = position

    @property
    def num_rows(self) -> int:
        """B."""
        return self._shape.num_rows

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        return self.keys.bytes + self.values.bytes + self.exact_keys.nbytes + self.exact_values.nbytes

    def begin(self, num_positions: int, table: Tensor | None) -> None:
        """Store the rotations [B or 1, length + n, 1, E / 2] of all positions and build the mask of the next n.

        If `position` is set, the rotations are those of the whole capacity, followed by the next position's.
        """
        shape = self._shape
        self._table = table
        if self._position is not None:
            assert num_positions == 1, "with its position in a tensor the cache takes one step at a time"
            self._begin_in_ring(self._position, table)
            return
        self._mask, self._causal = seen_in_order(
            self.length, num_positions, shape.device, shape.prefix_length, shape.prefix_mask, shape.window
        )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> AttentionInputs:
        """Store keys (before rotation) and values [B, G, n, E]; returns those of all positions."""
        keys, values = keys.to(self._shape.dtype), values.to(self._shape.dtype)
        if self._position is not None:
            return self._write_in_ring(layer, keys, values, self._position)
        P, n, group = self._shape.prefix_length, keys.shape[2], self.group
        assert self.length >= P or self.length + n <= P, "the prefix must be written in a separate call"
        steps = max(0, self.length - P)
        before, after = self._num_quantized(steps), self._num_quantized(max(0, self.length + n - P))
        exact = self.length - before
        new_keys = torch.cat([self.exact_keys[layer, :, :, P:exact], keys], dim=2) if exact > P else keys
        new_values = torch.cat([self.exact_values[layer, :, :, P:exact], values], dim=2) if exact > P else values
        first = min(exact, P)  # in the part of the prefix read so far
        seen_keys, seen_values = [self.exact_keys[layer, :, :, :first]], [self.exact_values[layer, :, :, :first]]
        if before:
            seen_keys.append(self.keys.get(layer, before // group).transpose(3, 4).flatten(2, 3))
            seen_values.append(self.values.get(layer, before))
        seen = AttentionInputs(
            self._rotate(torch.cat([*seen_keys, new_keys], dim=2)),
            torch.cat([*seen_values, new_values], dim=2),
            self._mask,
            self._causal,
        )
        if after > before:
            moved = after - before
            self.keys.put(layer, before // group, new_keys[:, :, :moved].unflatten(2, (-1, group)).transpose(3, 4))
            self.values.put(layer, before, new_values[:, :, :moved])
            new_keys, new_values = new_keys[:, :, moved:], new_values[:, :, moved:]
        self.exact_keys[layer, :, :, first : first + new_keys.shape[2]] = new_keys
        self.exact_values[layer, :, :, first : first + new_values.shape[2]] = new_values
        return seen

    def slot(self) -> None:
        """None: storing a position is more than a copy."""

    def advance(self, num_positions: int) -> None:
        """Count the positions that all layers have just written."""
        if self._position is not None:
            self._position += num_positions
        else:
            self.length += num_positions

    def rewind(self, length: int) -> None:
        """Raise ValueError unless `length` is the current one."""
        if length != self.length:
            raise cannot_rewind(self.kind)

    def _begin_in_ring(self, position: Tensor, table: Tensor | None) -> None:
        P, device = self._shape.prefix_length, self._shape.device
        step = position - P
        before = (step - self.recent).clamp(min=0) // self.group * self.group
        quantized, slots = torch.arange(self._max_quantized, device=device), torch.arange(self.ring, device=device)
        held = step - (step - slots) % self.ring  # the step in each slot of the ring buffer
        steps = torch.cat([torch.where(quantized < before, quantized, -1), torch.where(held >= before, held, -1)])
        prefix = torch.arange(P, device=device)
        where = torch.cat([prefix, torch.where(steps >= 0, P + steps, -1)])
        self._mask = causal_mask(position.reshape(1), where, P, self._shape.prefix_mask, self._shape.window)
        self._table = None if table is None else table.index_select(1, where.clamp(min=0))

    def _write_in_ring(self, layer: int, keys: Tensor, values: Tensor, position: Tensor) -> AttentionInputs:
        P, group, step = self._shape.prefix_length, self.group, position - self._shape.prefix_length
        own_keys, own_values = self.exact_keys[layer], self.exact_values[layer]
        own_keys.index_copy_(2, (P + step % self.ring).reshape(1), keys)
        own_values.index_copy_(2, (P + step % self.ring).reshape(1), values)
        seen_keys = [own_keys[:, :, :P], own_keys[:, :, P:]]
        seen_values = [own_values[:, :, :P], own_values[:, :, P:]]
        if self._max_quantized:
            seen_keys.insert(1, self.keys.get(layer, self._max_quantized // group).transpose(3, 4).flatten(2, 3))
            seen_values.insert(1, self.values.get(layer, self._max_quantized))
        seen = AttentionInputs(
            self._rotate(torch.cat(seen_keys, dim=2)), torch.cat(seen_values, dim=2), self._mask, False
        )
        if self._max_quantized:
            enough = step + 1 - self.recent
            is_due, last = (enough >= group) & (enough % group == 0), (enough // group - 1).clamp(min=0)
            places = P + (last * group + torch.arange(group, device=position.device)) % self.ring
            whole = own_keys.index_select(2, places).unflatten(2, (1, group)).transpose(3, 4)
            self.keys.put_where(is_due, layer, last, whole)
            self.values.put_where(is_due, layer, last * group, own_values.index_select(2, places))
        return seen

    def _num_quantized(self, num_steps: int) -> int:
        return max(0, num_steps - self.recent) // self.group * self.group

    def _rotate(self, keys: Tensor) -> Tensor:
        return keys if self._table is None else rotate(keys.transpose(1, 2), self._table).transpose(1, 2)
