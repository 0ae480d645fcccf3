"""The ring kind of cache: a sliding window of steps after permanent anchors, in constant memory.

Anchors (the conditions' prefix and, optionally, the first steps) stay at the front; step t after them goes to slot
t mod W. For 2 anchors, W = 3, after the steps a b c d e:

    slots     p0 p1 | d  e  c        the next step replaces c

Keys are rotated by their own position when written, so their order in memory does not matter.
Sources: the window of Longformer (arXiv:2004.05150); first tokens kept as in StreamingLLM (arXiv:2309.17453).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.masks import causal_mask
from .base import AttentionInputs, CacheShape, InPlace, cannot_rewind
from .config import RingCacheConfig


class RingCache(InPlace):
    """Anchors and the last W steps. With `position` set it takes one step at a time.

    Raises:
        ValueError: no window is given, or it is larger than the model's.
    """

    kind = "ring"

    def __init__(self, config: RingCacheConfig, shape: CacheShape):
        window = config.window if config.window is not None else shape.window
        if window is None:
            raise ValueError("cache kind 'ring' needs a window: the model was trained without one; set window: STEPS")
        if shape.window is not None and (window > shape.window or config.sinks):
            raise ValueError(
                f"cache ring has window {window} and sinks {config.sinks}, but the model was trained with window "
                f"{shape.window} and no sinks; leave them out"
            )
        self.window = min(window, shape.num_steps)
        self.anchors = shape.prefix_length + min(config.sinks, shape.num_steps)
        super().__init__(shape.empty(self.anchors + self.window, shape.head_width), shape.prefix_mask)
        self._num_positions = 0

    def begin(self, num_positions: int, table: Tensor | None = None) -> None:
        """Find the slots and build the mask of the next positions, for all layers."""
        n, device, size = num_positions, self.keys.device, self.capacity
        self._num_positions, self._mask, self._causal = n, None, False
        if self.position is not None:
            assert n == 1, "with its position in a tensor the ring takes one step at a time"
            self._places = self._places_of(self.position.reshape(1))
            # slots fill in order and then hold the last steps, all of which are attended to
            self._mask = (torch.arange(size, device=device) <= self.position)[None, None, None]
            if self._prefix_mask is not None:
                self._mask = self._mask & self._real(size)
            return
        if n == 1:
            if self._prefix_mask is not None:
                slot, held = self._slot()
                # a padded position attends to itself
                self._mask = self._real(held) | (torch.arange(held, device=device) == slot)
            return
        end = self.length + n
        new = torch.arange(self.length, end, device=device)
        if self.length == 0 and self._prefix_mask is None and end <= size:
            self._causal = True
        else:
            self._mask = self._visible(new, torch.cat([self._held(), new]))

    def write(self, layer: int, keys: Tensor, values: Tensor) -> AttentionInputs:
        """Store keys and values [B, G, n, E] over the oldest; several steps still attend to those they replace."""
        if self.position is not None:
            return self._put(layer, keys, values)
        own_keys, own_values = self.keys[layer], self.values[layer]
        keys, values = keys.to(own_keys.dtype), values.to(own_values.dtype)
        n, size = self._num_positions, self.capacity
        if n == 1:
            slot, held = self._slot()
            own_keys[:, :, slot : slot + 1] = keys
            own_values[:, :, slot : slot + 1] = values
            return AttentionInputs(own_keys[:, :, :held], own_values[:, :, :held], self._mask, False)
        held = min(self.length, size)
        seen_keys = torch.cat([own_keys[:, :, :held], keys], dim=2)
        seen_values = torch.cat([own_values[:, :, :held], values], dim=2)
        new = torch.arange(self.length, self.length + n, device=keys.device)
        stays = ((new < self.anchors) | (new >= self.length + n - self.window)).nonzero()[:, 0]
        places = self._places_of(new[stays])
        own_keys.index_copy_(2, places, keys[:, :, stays])
        own_values.index_copy_(2, places, values[:, :, stays])
        return AttentionInputs(seen_keys, seen_values, self._mask, self._causal)

    def rewind(self, length: int) -> None:
        """Raise ValueError unless `length` is the current one."""
        if length != self.length:
            raise cannot_rewind(self.kind)

    def _slot(self) -> tuple[int, int]:
        behind = self.length - self.anchors
        index = self.length if behind < 0 else self.anchors + behind % self.window
        return index, min(self.length + 1, self.capacity)

    def _places_of(self, positions: Tensor) -> Tensor:
        behind = positions - self.anchors
        return torch.where(behind < 0, positions, self.anchors + behind % self.window)

    def _held(self) -> Tensor:
        """[min(length, M)] long: the position whose key is in each slot."""
        held = torch.arange(min(self.length, self.capacity), device=self.keys.device)
        oldest = max(self.length - self.window, self.anchors)  # of the steps in the ring buffer
        steps = oldest + (held - self.anchors - (oldest - self.anchors)) % self.window
        return torch.where(held < self.anchors, held, steps)

    def _visible(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Treat anchors like conditions in the mask."""
        mask = self._prefix_mask
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, self.anchors - mask.shape[1]), value=True)
        return causal_mask(queries, keys, self.anchors, mask, self.window)

    def _real(self, places: int) -> Tensor:
        """[B, 1, 1, slots] bool, False on prefix padding."""
        assert self._prefix_mask is not None
        missing = places - self._prefix_mask.shape[1]
        return torch.nn.functional.pad(self._prefix_mask, (0, missing), value=True)[:, None, None]
