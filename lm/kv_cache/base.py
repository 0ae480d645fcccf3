"""The KV cache: keys and values of all positions so far, in memory allocated once.

`Cache` is the protocol that the transformer uses; `registry.py` has the table of kinds. Positions count the prefix
(conditions) first, then the steps. One generation step with L layers:

    cache.begin(n, table)           announces the positions length .. length + n - 1
    L times: cache.write(...)       stores a layer's keys and values; returns what its queries attend to
    cache.advance(n)                counts the positions
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
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
    """bool, broadcasts to [B, H, n, M], True where a query attends to a key; `CacheLength` if the backend supports it;
    None: all, or as `causal` specifies."""
    causal: bool
    """M = n, and query s attends to keys 0 .. s."""


class CacheSlot(NamedTuple):
    """Where the keys and values of one position go, if storing them is a plain copy."""

    keys: Tensor
    """[layers, B, G, M, E]."""
    values: Tensor
    index: int | Tensor
    """Slot of the position among the M slots; long [1] if `position` is set."""
    num_seen: int
    """Leading slots that its queries attend to, its own included; M if `position` is set."""
    mask: Tensor | None
    """[B or 1, 1, 1, num_seen] bool; None: all."""
    length: int | Tensor
    """Number of positions before it; slots from length + 1 on are not attended to."""


class Cache(Protocol):
    """Keys and values of B rows, all at the same position."""

    kind: str
    """Name in the table of kinds."""
    rotated_keys: bool
    """True: `write` takes rotated keys. False: it takes keys before rotation and rotates those it returns; the table of
    `begin` then covers all positions."""
    position: Any
    """None: a Python number counts positions, and the results of `write` grow. If set to a long tensor [] on the
    device, the number of positions so far, it counts from then on, one step at a time, and no shape or Python number
    depends on the step, as torch.compile and CUDA graphs require."""

    @property
    def length(self) -> int:
        """Positions read so far, prefix included, whether or not they are still cached."""
        ...

    @property
    def num_rows(self) -> int:
        """B."""
        ...

    @property
    def bytes(self) -> int:
        """Memory allocated for keys, values and their metadata."""
        ...

    def parts(self) -> tuple:
        """All tensors that persist between steps, `position` included, in a fixed order for each kind."""
        ...

    def begin(self, num_positions: int, table: Tensor | None) -> None:
        """Announce the positions that every layer writes next.

        Args:
            num_positions: n.
            table: their rotations (`rotary_table`), [B or 1, n, 1, E / 2]; if `rotated_keys` is False, of all length +
                n positions (if `position` is set: of the whole capacity, followed by the next one); None: no rotation.
        """
        ...

    def write(self, layer: int, keys: Tensor, values: Tensor) -> AttentionInputs:
        """Store keys and values [B, G, n, E] of the next n positions; returns what their queries attend to."""
        ...

    def slot(self) -> CacheSlot | None:
        """After `begin` of one position: its slot in every layer, for kernels that write it themselves instead of
        calling `write`; None if only `write` can store it."""
        ...

    def advance(self, num_positions: int) -> None:
        """Count the positions that all layers have just written."""
        ...

    def rewind(self, length: int) -> None:
        """Discard all but the first `length` positions; ValueError if the kind cannot."""
        ...


@dataclass(frozen=True)
class CacheShape:
    """Size of a KV cache to allocate."""

    layers: int
    num_rows: int
    """B."""
    kv_heads: int
    """G."""
    head_width: int
    """E."""
    num_steps: int
    """Steps after the prefix."""
    dtype: torch.dtype
    device: torch.device
    prefix_length: int = 0
    """P."""
    prefix_mask: Tensor | None = None
    """[B, P] bool, False on padding; None: there is none."""
    window: int | None = None
    """Attention window of the model in steps; None: unlimited."""
    counted: bool = False
    """Whether the attention backend prefers a key count to a dense mask (attention/registry.py)."""

    def empty(self, positions: int, *width: int, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros [layers, B, G, positions, *width] on the device, in the shape's dtype unless another is given."""
        size = (self.layers, self.num_rows, self.kv_heads, positions, *width)
        return zeros(size, dtype or self.dtype, torch.device(self.device))


def zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.zeros; on a CPU the operating system zeroes a page when it is first used: a long capacity costs nothing,
    neither time nor memory, until it is reached."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    memory = torch.from_numpy(np.zeros(max(1, math.prod(size) * dtype.itemsize), dtype=np.uint8)).untyped_storage()
    return torch.empty(0, dtype=dtype).set_(memory, 0, size, torch.empty(size, device="meta").stride())


class InPlace:
    """Keys and values [layers, B, G, M, E] in the model's precision, written in place.

    Two ways of counting. Normally `length` is a number, and `write` returns everything written so far: tensors that
    grow. For torch.compile or CUDA graphs, set `position` to a long tensor [] on the cache's device, the number of
    positions so far: `begin`, `write` and `advance` then read and change only that tensor, no shape or Python number
    depends on it, and `write` returns all M slots with a mask. Set it to None to return to `length`, which is read from
    it (synchronizes the device).
    """

    rotated_keys = True

    def __init__(self, keys: Tensor, prefix_mask: Tensor | None):
        self.keys, self.values = keys, torch.zeros_like(keys)
        self.length = 0
        """Positions read so far (the same for all rows and layers), while `position` is None."""
        self._position: Tensor | None = None
        self._prefix_mask = prefix_mask
        self._mask: Tensor | CacheLength | None = None
        self._causal = False
        self._places: Tensor | None = None
        """[n] long: slots of the next positions, if `position` is set."""

    def parts(self) -> tuple[Tensor | None, ...]:
        """All tensors it holds."""
        return self.keys, self.values, self._position

    @property
    def capacity(self) -> int:
        """M, the maximum number of positions."""
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
        """Count the positions that all layers have just written."""
        if self._position is not None:
            self._position += num_positions
        else:
            self.length += num_positions

    def slot(self) -> CacheSlot | None:
        """The slot of the single announced position; None if the mask is a `CacheLength`."""
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
        """Write to `_places` and return all slots."""
        assert self._places is not None
        self.keys[layer].index_copy_(2, self._places, keys.to(self.keys.dtype))
        self.values[layer].index_copy_(2, self._places, values.to(self.values.dtype))
        return AttentionInputs(self.keys[layer], self.values[layer], self._mask, False)


class KVCache(InPlace):
    """The static kind: keeps all positions."""

    kind = "static"

    def __init__(self, shape: CacheShape):
        """Allocate all positions."""
        keys = shape.empty(shape.prefix_length + shape.num_steps, shape.head_width)
        super().__init__(keys, shape.prefix_mask)
        self._prefix, self._window = shape.prefix_length, shape.window
        self._counted = shape.counted and shape.prefix_mask is None and shape.window is None

    def begin(self, num_positions: int, table: Tensor | None = None) -> None:
        """Build the mask of the next positions, for all layers."""
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
        """Store keys and values [B, G, n, E] after the positions so far; returns all of the layer's."""
        if self._position is not None:
            return self._put(layer, keys, values)
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return AttentionInputs(self.keys[layer, :, :, :end], self.values[layer, :, :, :end], self._mask, self._causal)

    def rewind(self, length: int) -> None:
        """Discard all but the first `length` positions."""
        if self._position is not None:
            self._position.fill_(length)
        else:
            assert 0 <= length <= self.length
            self.length = length


def seen_in_order(
    length: int, n: int, device: torch.device, prefix_length: int, prefix_mask: Tensor | None, window: int | None
) -> tuple[Tensor | None, bool]:
    """(mask, causal) as in `AttentionInputs`, for n positions after `length` others that are all cached in order."""
    end = length + n
    fits = window is None or end - prefix_length <= window
    if prefix_mask is None and fits and (n == 1 or length == 0):
        return None, n > 1
    queries, keys = torch.arange(length, end, device=device), torch.arange(end, device=device)
    return causal_mask(queries, keys, prefix_length, prefix_mask, window), False


def cannot_rewind(kind: str) -> ValueError:
    """The error of `rewind` for a cache that has discarded positions for good."""
    return ValueError(f"cache kind '{kind}' cannot roll back steps; use cache kind 'static'")
