"""What a generation remembers: keys and values of the positions so far, in memory that is allocated once.

`Cache` is what the transformer asks of every kind; `registry.py` has the table of kinds. Positions count the prefix
(conditions) first, then the steps. A step of a generation with L layers:

    cache.begin(n, table)           the positions length .. length + n - 1 are about to come
    L times: cache.write(...)       a layer's keys and values go in; what its queries may see comes back
    cache.advance(n)                they count
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..attention.mask_types import CacheLength
from ..attention.masks import causal_mask


class AttentionInputs(NamedTuple):
    """What the queries of the positions just written attend to."""

    keys: Tensor
    """[B, G, M, E], rotated."""
    values: Tensor
    """[B, G, M, E]."""
    mask: Tensor | CacheLength | None
    """bool, broadcasts to [B, H, n, M], True where a key is seen; `CacheLength`, where the backend takes it; None: all,
    or as `causal` says."""
    causal: bool
    """M = n and query s sees keys 0 .. s."""


class CacheSlot(NamedTuple):
    """Where the keys and values of one position go, where that is a copy and no more."""

    keys: Tensor
    """[layers, B, G, M, E]."""
    values: Tensor
    index: int | Tensor
    """Of the M places, the position's own; long [1] while `position` counts."""
    num_seen: int
    """Leading places that its queries see, its own among them; M while `position` counts."""
    mask: Tensor | None
    """[B or 1, 1, 1, num_seen] bool; None: all."""
    length: int | Tensor
    """Positions before it; no place behind so many more is seen."""


class Cache(Protocol):
    """Keys and values of B rows, all at the same position."""

    kind: str
    """Its name in the table."""
    turned: bool
    """True: `write` takes rotated keys. False: it takes them as they are before rotation and rotates what it gives
    back; the table of `begin` then covers all positions."""
    position: Any
    """None: positions are counted by a number, and what `write` gives back grows. Set to a long tensor [] on the
    device, the positions so far: it counts from then on, one step at a time, and no shape and no number in Python
    depends on the step, as a compiled step or a CUDA graph needs it."""

    @property
    def length(self) -> int:
        """Positions read so far, prefix included, whether they are still remembered or not."""
        ...

    @property
    def num_rows(self) -> int:
        """B."""
        ...

    @property
    def bytes(self) -> int:
        """Memory allocated for keys, values and what belongs to them."""
        ...

    def parts(self) -> tuple:
        """All tensors that outlast a step, `position` among them, in the same order for every cache of the kind."""
        ...

    def begin(self, num_positions: int, table: Tensor | None) -> None:
        """Positions are about to be written by every layer.

        Args:
            num_positions: n.
            table: their turns (`rotary_table`), [B or 1, n, 1, E / 2]; of all length + n positions where the cache is
                not `turned` (while `position` counts: of all there is room for, and then of the next one); None:
                nothing is rotated.
        """
        ...

    def write(self, layer: int, keys: Tensor, values: Tensor) -> AttentionInputs:
        """Put keys and values [B, G, n, E] of the next n positions in; gives what their queries see."""
        ...

    def place(self) -> CacheSlot | None:
        """After `begin` of one position: its place in every layer, for others to write instead of `write`; None where
        only `write` knows how."""
        ...

    def advance(self, num_positions: int) -> None:
        """Count the positions all layers have just written."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions; ValueError where the kind cannot."""
        ...


@dataclass(frozen=True)
class CacheShape:
    """What there shall be room for."""

    layers: int
    num_rows: int
    """B."""
    kv_heads: int
    """G."""
    head_width: int
    """E."""
    num_steps: int
    """Steps behind the prefix."""
    dtype: torch.dtype
    device: torch.device
    prefix_length: int = 0
    """P."""
    prefix_mask: Tensor | None = None
    """[B, P] bool, False on padding; None: there is none."""
    window: int | None = None
    """Steps that a step of the model sees; None: all before it."""
    counted: bool = False
    """Whether the attention backend rather takes a count of keys than a dense mask (attention.TAKE_COUNTS)."""

    @property
    def static_bytes(self) -> int:
        """Memory of keys and values of all positions in full precision."""
        numbers = 2 * self.layers * self.num_rows * self.kv_heads * self.head_width
        return numbers * (self.prefix_length + self.num_steps) * self.dtype.itemsize

    def empty(self, positions: int, *width: int, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros [layers, B, G, positions, *width] on the device, of the shape's dtype unless another is given."""
        size = (self.layers, self.num_rows, self.kv_heads, positions, *width)
        return torch.zeros(size, dtype=dtype or self.dtype, device=self.device)


class InPlace:
    """Keys and values [layers, B, G, M, E] in the model's precision, written in place.

    Two ways of counting. Normally `length` is a number, and `write` gives back what has been written so far: tensors
    that grow. For a compiled step or a CUDA graph, set `position` to a long tensor [] on the cache's device, the
    positions so far: `begin`, `write` and `advance` then read and change that tensor alone, no shape and no number in
    Python depends on it, and `write` gives back all M places with a mask. Set it to None to go on with `length`, which
    is read from it (the device is waited for).
    """

    turned = True

    def __init__(self, keys: Tensor, prefix_mask: Tensor | None):
        self.keys, self.values = keys, torch.zeros_like(keys)
        self.length = 0
        """Positions read so far (the same for all rows and layers), while `position` is None."""
        self._position: Tensor | None = None
        self._prefix_mask = prefix_mask
        self._mask: Tensor | CacheLength | None = None
        self._causal = False
        self._places: Tensor | None = None
        """[n] long: where the next positions go, while `position` counts."""

    def parts(self) -> tuple[Tensor | None, ...]:
        """What it holds."""
        return self.keys, self.values, self._position

    @property
    def capacity(self) -> int:
        """M, positions there is room for."""
        return self.keys.shape[3]

    @property
    def num_rows(self) -> int:
        """B."""
        return self.keys.shape[1]

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def position(self) -> Tensor | None:
        """Positions so far, long []; None: `length` counts."""
        return self._position

    @position.setter
    def position(self, position: Tensor | None) -> None:
        if position is None and self._position is not None:
            self.length = int(self._position)
        self._position = position

    def advance(self, num_positions: int) -> None:
        """Count the positions all layers have just written."""
        if self._position is not None:
            self._position += num_positions
        else:
            self.length += num_positions

    def place(self) -> CacheSlot | None:
        """The place of the one position that has begun; None for a mask that is none."""
        if isinstance(self._mask, CacheLength):
            return None
        if self._position is not None:
            assert self._places is not None
            return CacheSlot(self.keys, self.values, self._places, self.capacity, self._mask, self._position)
        index, num_seen = self._slot()
        return CacheSlot(self.keys, self.values, index, num_seen, self._mask, self.length)

    def _slot(self) -> tuple[int, int]:
        """`index` and `num_seen` of a `CacheSlot`."""
        return self.length, self.length + 1

    def _put(self, layer: int, keys: Tensor, values: Tensor) -> AttentionInputs:
        """Write to `_places` and give all places back."""
        assert self._places is not None
        self.keys[layer].index_copy_(2, self._places, keys.to(self.keys.dtype))
        self.values[layer].index_copy_(2, self._places, values.to(self.values.dtype))
        return AttentionInputs(self.keys[layer], self.values[layer], self._mask, False)


class KVCache(InPlace):
    """The static kind: all positions."""

    kind = "static"

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
        prefix_length: int = 0,
        prefix_mask: Tensor | None = None,
        window: int | None = None,
        counted: bool = False,
    ):
        keys = torch.zeros(layers, batch, kv_heads, capacity, head_width, dtype=dtype, device=device)
        super().__init__(keys, prefix_mask)
        self._prefix, self._window = prefix_length, window
        self._counted = counted and prefix_mask is None and window is None

    @classmethod
    def of(cls, shape: CacheShape) -> KVCache:
        """For a shape."""
        s, places = shape, shape.prefix_length + shape.num_steps
        sizes = (s.layers, s.num_rows, s.kv_heads, places, s.head_width)
        return cls(*sizes, s.dtype, s.device, s.prefix_length, s.prefix_mask, s.window, s.counted)

    def begin(self, num_positions: int, table: Tensor | None = None) -> None:
        """Find the mask of the next positions, for all layers."""
        n, device = num_positions, self.keys.device
        if self._position is not None:
            self._places = self._position + torch.arange(n, device=device)
            if self._counted:
                self._mask = CacheLength(self._position + n)
                return
            keys = torch.arange(self.capacity, device=device)
            self._mask = causal_mask(self._places, keys, self._prefix, self._prefix_mask, self._window)
            return
        assert self.length + n <= self.capacity, f"{self.length + n} positions in a cache of {self.capacity}"
        if self._counted and self.length:
            self._mask, self._causal = CacheLength(self.length + n), False
            return
        self._mask, self._causal = seen_in_order(self.length, n, device, self._prefix, self._prefix_mask, self._window)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> AttentionInputs:
        """Put keys and values [B, G, n, E] behind the positions so far; gives all of the layer's."""
        if self._position is not None:
            return self._put(layer, keys, values)
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return AttentionInputs(self.keys[layer, :, :, :end], self.values[layer, :, :, :end], self._mask, self._causal)

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        if self._position is not None:
            self._position.fill_(length)
        else:
            assert 0 <= length <= self.length
            self.length = length


def seen_in_order(
    length: int, n: int, device: torch.device, prefix_length: int, prefix_mask: Tensor | None, window: int | None
) -> tuple[Tensor | None, bool]:
    """(mask, causal) as `AttentionInputs` has them, of n positions behind `length` others that are all remembered,
    in order."""
    end = length + n
    fits = window is None or end - prefix_length <= window
    if prefix_mask is None and fits and (n == 1 or length == 0):
        return None, n > 1
    queries, keys = torch.arange(length, end, device=device), torch.arange(end, device=device)
    return causal_mask(queries, keys, prefix_length, prefix_mask, window), False


def cannot_rewind(kind: str) -> ValueError:
    """The error of `rewind` where positions are gone for good."""
    return ValueError(f"cache kind '{kind}' cannot take steps back; use cache kind 'static'")
