"""A static KV cache whose positions arrive in blocks (the scales of an image) and attend to their whole block."""

from __future__ import annotations

from torch import Tensor, nn

from .base import KVCache


class BlockCache(KVCache):
    """A static cache whose positions arrive in blocks and attend to their whole block."""

    kind = "static"

    def begin(self, num_positions: int, table: Tensor | None = None) -> None:
        """Build the mask of the next block; the conditions' prefix is causal."""
        super().begin(num_positions, table)
        if self.length or not self._prefix:
            mask, more = self._prefix_mask, self.length + num_positions - self._prefix
            self._mask, self._causal = None, False
            if mask is not None:
                self._mask = nn.functional.pad(mask, (0, more), value=True)[:, None, None, :]
