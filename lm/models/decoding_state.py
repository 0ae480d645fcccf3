"""The state of a generation between steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..conditioning.aligned import AlignedUnits
from ..kv_cache.base import Cache
from ..layers.attention_layers import Memory


@dataclass
class DecodingState:
    """A generation in progress: B rows, all at the same step. `TokenLM.step` changes it in place."""

    cache: Cache
    memory: Memory | None
    """Cross-attention keys and values."""
    summed: Tensor | None
    """[B, 1, D] added to every step's input."""
    first: Tensor | None
    """[B, 1, D] input of the first step, instead of `start`."""
    prefix_mask: Tensor | None
    """[B, P] bool; None: no row's prefix is padded."""
    prefix_length: int
    """P."""
    capacity: int
    """Maximum number of steps."""
    num_frames: int | Tensor | None
    """Frames of the sequence if known (required by coarse_first and by grouped on a grid)."""
    units: AlignedUnits | None = None
    """Units of an aligned text."""
    adaptive: Tensor | None = None
    """[B, D], read by adaptive norms."""
    beside: Tensor | None = None
    """[B, 1 + n, D] added to the steps, the last from step n on."""
    head: Any = None
    """State of the head."""
    rotary: Tensor | None = None
    """[1, S, 1, E / 2]: rotary table of all steps; computed at the first one that needs it."""
    step: int = 0
    """The step to predict next; `TokenLM.read_at` neither reads nor changes it."""

    def parts(self) -> tuple:
        """All tensors that `read_at` and the head read, and `num_frames`."""
        memory = None if self.memory is None else (self.memory.keys, self.memory.values, self.memory.mask)
        head = None if self.head is None else self.head.parts()
        added = self.summed, self.units, self.beside
        return self.cache.parts(), memory, added, self.prefix_mask, self.num_frames, head

    @property
    def num_rows(self) -> int:
        """B."""
        return self.cache.num_rows
