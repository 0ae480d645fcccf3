"""What a generation remembers: keys and values of the steps so far, in memory that is allocated once."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, [layers, B, G, M, E] each; steps are written in place."""

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.keys = torch.zeros(layers, batch, kv_heads, capacity, head_width, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0
        """Positions written so far (the same for all rows and layers)."""

    @property
    def capacity(self) -> int:
        """M, positions there is room for."""
        return self.keys.shape[3]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values [B, G, S, E] behind the positions so far; returns all of the layer's, [B, G, length + S,
        E].

        The length moves on once all layers have written, by `advance`.
        """
        end = self.length + keys.shape[2]
        assert end <= self.capacity, f"{end} positions in a cache of {self.capacity}"
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, num_positions: int) -> None:
        """Count the positions all layers have just written."""
        self.length += num_positions
