"""The evict kind of cache: a fixed budget of steps; when it is full, the step with the lowest policy score is evicted.

Every layer, head and row evicts independently. The conditions and the most recent steps are always kept. A step is
scored once, from its own key and value. Of steps whose scores tie up to rounding (rotated first-layer keys of the same
codes), the oldest is evicted.
Source: keys with a low L2 norm receive the most attention, Devoto et al. 2024 (arXiv:2406.11430).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..attention.masks import causal_mask
from ..ops.near_ties import is_small, largest
from .base import AttentionInputs, CacheShape, cannot_rewind, seen_in_order
from .config import EvictCacheConfig

NEVER = (1 << 31) - 1
"""Larger than any step number."""


Policy = Callable[[Tensor, Tensor], Tensor]
"""policy(keys [B, G, n, E], values [B, G, n, E]) -> [B, G, n]: score of each step; low scores are evicted first."""


def low_norm(keys: Tensor, values: Tensor) -> Tensor:
    """Negative norm of the keys: a lower norm scores higher."""
    return -keys.float().norm(dim=-1)


POLICIES: dict[str, Policy] = {"key_norm": low_norm}


class EvictingCache:
    """The conditions' prefix, then `budget` slots for steps.

    Single steps evict before the new step attends; steps written together attend to everything cached and to each
    other, and eviction follows.

    Raises:
        ValueError: the model was trained with a window.
    """

    kind = "evict"
    rotated_keys = True

    def __init__(self, config: EvictCacheConfig, shape: CacheShape):
        if shape.window is not None:
            raise ValueError(
                f"cache kind 'evict' keeps steps of any age, but the model was trained with window {shape.window}; "
                "use cache kind 'ring'"
            )
        self.budget, self.recent = min(config.budget, shape.num_steps), config.recent
        self.policy = POLICIES[config.policy]
        self.keys = shape.empty(shape.prefix_length + self.budget, shape.head_width)
        self.values = torch.zeros_like(self.keys)
        self.scores = shape.empty(self.budget, dtype=torch.float32)
        """[layers, B, G, budget]: the score of the step in each slot."""
        self.steps = shape.empty(self.budget, dtype=torch.int32)
        """[layers, B, G, budget]: the step in each slot."""
        self.length = 0
        """Positions read so far, prefix included."""
        self.position: Tensor | None = None
        self._shape = shape
        self._mask: Tensor | None = None
        self._causal = False

    def parts(self) -> tuple[Tensor | None, ...]:
        """All tensors it holds."""
        return self.keys, self.values, self.scores, self.steps, self.position

    @property
    def num_rows(self) -> int:
        """B."""
        return self._shape.num_rows

    @property
    def bytes(self) -> int:
        """Memory of keys, values and their metadata."""
        return self.keys.nbytes + self.values.nbytes + self.scores.nbytes + self.steps.nbytes

    def begin(self, num_positions: int, table: Tensor | None = None) -> None:
        """Build the mask of the next positions: they attend to the prefix, the kept steps, and each other causally."""
        shape, n, P = self._shape, num_positions, self._shape.prefix_length
        if self.position is not None:
            assert n == 1, "with its position in a tensor the cache takes one step at a time"
            places = torch.arange(P + self.budget, device=shape.device)  # they fill in order
            filled = torch.where(places <= self.position, places, -1)
            self._mask = causal_mask(self.position.reshape(1), filled, P, shape.prefix_mask)
            return
        steps = max(0, self.length - P)
        kept = min(steps, self.budget - 1 if n == 1 else self.budget)
        held = min(self.length, P) + kept
        self._mask, self._causal = seen_in_order(held, n, shape.device, P, shape.prefix_mask, None)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> AttentionInputs:
        """Store rotated keys and values [B, G, n, E]; returns the kept ones and the new ones."""
        P, n = self._shape.prefix_length, keys.shape[2]
        own_keys, own_values = self.keys[layer], self.values[layer]
        keys, values = keys.to(own_keys.dtype), values.to(own_values.dtype)
        if self.position is not None:
            step = (self.position - P).to(torch.int32).reshape(1)
            self._replace(layer, keys, values, self.policy(keys, values).float(), step)
            return AttentionInputs(own_keys, own_values, self._mask, False)
        if self.length < P:
            own_keys[:, :, self.length : self.length + n] = keys
            own_values[:, :, self.length : self.length + n] = values
            end = self.length + n
            return AttentionInputs(own_keys[:, :, :end], own_values[:, :, :end], self._mask, self._causal)
        used = min(self.length - P, self.budget)
        scores = self.policy(keys, values).float()
        steps = torch.arange(self.length - P, self.length - P + n, device=keys.device, dtype=torch.int32)
        if n == 1 and used == self.budget:
            self._replace(layer, keys, values, scores, steps)
            return AttentionInputs(own_keys, own_values, self._mask, self._causal)
        if used + n <= self.budget:
            place = slice(P + used, P + used + n)
            own_keys[:, :, place], own_values[:, :, place] = keys, values
            self.scores[layer, :, :, used : used + n], self.steps[layer, :, :, used : used + n] = scores, steps
            end = P + used + n
            return AttentionInputs(own_keys[:, :, :end], own_values[:, :, :end], self._mask, self._causal)
        seen_keys = torch.cat([own_keys[:, :, : P + used], keys], dim=2)
        seen_values = torch.cat([own_values[:, :, : P + used], values], dim=2)
        all_scores = torch.cat([self.scores[layer, :, :, :used], scores], dim=2)
        all_steps = torch.cat([self.steps[layer, :, :, :used], steps.expand(*scores.shape)], dim=2)
        protected, close = self._protected(all_scores, all_steps, steps[-1]), self._tie_width(all_scores)
        flat = [x.flatten(0, 1) for x in (protected, all_steps.double(), close)]
        kept = largest(flat[0], self.budget, flat[1], flat[2])
        order = kept.byte().argsort(dim=1, descending=True, stable=True)[:, : self.budget]
        chosen = order.view(*scores.shape[:2], self.budget)
        own_keys[:, :, P:] = _take(seen_keys[:, :, P:], chosen)
        own_values[:, :, P:] = _take(seen_values[:, :, P:], chosen)
        self.scores[layer], self.steps[layer] = all_scores.gather(2, chosen), all_steps.gather(2, chosen)
        return AttentionInputs(seen_keys, seen_values, self._mask, self._causal)

    def slot(self) -> None:
        """None: storing a position is more than a copy."""

    def advance(self, num_positions: int) -> None:
        """Count the positions that all layers have just written."""
        if self.position is not None:
            self.position += num_positions
        else:
            self.length += num_positions

    def rewind(self, length: int) -> None:
        """Raise ValueError unless `length` is the current one."""
        if length != self.length:
            raise cannot_rewind(self.kind)

    def _replace(self, layer: int, keys: Tensor, values: Tensor, scores: Tensor, steps: Tensor) -> None:
        """Put one step [B, G, 1, E] in the next free slot, or in that of the lowest score."""
        P, E = self._shape.prefix_length, keys.shape[3]
        protected = self._protected(self.scores[layer], self.steps[layer], steps)
        above = protected - protected.amin(dim=2, keepdim=True)
        equal = is_small(above, self._tie_width(self.scores[layer]))
        least = torch.where(equal, self.steps[layer], NEVER).argmin(dim=2, keepdim=True)
        least = torch.where(steps < self.budget, steps, least)
        where = (P + least)[..., None].expand(-1, -1, 1, E)
        self.keys[layer].scatter_(2, where, keys)
        self.values[layer].scatter_(2, where, values)
        self.scores[layer].scatter_(2, least, scores)
        self.steps[layer].scatter_(2, least, steps.expand(*least.shape))

    def _tie_width(self, scores: Tensor) -> Tensor:
        """[B, G, 1]: largest difference at which the scores of steps [B, G, n] count as ties."""
        rounding = 1e-4 if self.keys.dtype in (torch.float32, torch.float64) else 0.02
        return rounding * scores.abs().amax(dim=2, keepdim=True)

    def _protected(self, scores: Tensor, steps: Tensor, newest: Tensor) -> Tensor:
        """Scores of the steps, infinite for recent ones."""
        return scores.masked_fill(steps > newest - self.recent, torch.inf)


def _take(x: Tensor, chosen: Tensor) -> Tensor:
    """Gather x [B, G, M, E] at chosen [B, G, m]."""
    return x.gather(2, chosen[..., None].expand(-1, -1, -1, x.shape[3]))
