"""Positions of the tokens in a row, applied by rotary embedding of queries and keys, or by sinusoids or learned vectors
added to the input.

conditions' prefix    -P .. -1     counted back from the first step (from the second, if the last prefix token
steps                  0 .. S-1    replaces the start token)

With sinusoids whose `prefix` is counted, and if queries of cross-attention are rotated, all positions are P higher; P
is a row's number of real prefix tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...tokenize.spec import Geometry, ImageGeometry
from ..ops.rotary import (
    GridRopeConfig,
    LearnedConfig,
    RopeConfig,
    SinusoidalConfig,
    TimeRopeConfig,
    grid_columns,
    grid_coordinates,
    rotary_table,
    scale_coordinates,
    sinusoidal_embedding,
)
from ..patterns.pattern import CodebookPattern


class Positions(nn.Module):
    """Position encoding of one model.

    Args:
        config: the kind of encoding.
        arrangement: maps steps to frames, for positions on a grid.
        geometry: the tokenizer's.
        width, head_width: D and E.
        first: position of step 0; -1 if the last prefix token replaces the start token.
    Raises:
        ConfigError: a grid that the tokenizer does not have.
    """

    cells: Tensor | None
    """[T, 2] positions of the cells of scales; None: there are no scales."""

    def __init__(
        self,
        config: RopeConfig,
        arrangement: CodebookPattern,
        geometry: Geometry,
        width: int,
        head_width: int,
        first: int,
    ):
        super().__init__()
        self.config, self.arrangement = config, arrangement
        self.width, self.head_width, self.first = width, head_width, first
        self.columns = grid_columns(config, geometry) if isinstance(config, GridRopeConfig) else None
        self.register_buffer("cells", scale_coordinates(geometry), persistent=False)
        self.vectors = (
            nn.Parameter(torch.empty(geometry.num_frames, width))
            if isinstance(config, LearnedConfig) and isinstance(geometry, ImageGeometry)
            else None
        )
        """[T, D]: learned, of the frames of an image."""

    def of(self, steps: Tensor, P: int, prefix_mask: Tensor | None) -> Tensor:
        """[B or 1, P + S] long: positions of P prefix tokens (prefix_mask [B, P]: the real ones) and the steps [S]."""
        positions = steps.unsqueeze(0)
        if P:
            if prefix_mask is None:
                back = torch.arange(-P, 0, device=steps.device).unsqueeze(0)
            else:
                back = count_back(prefix_mask)
            positions = torch.cat([back, steps.expand(back.shape[0], -1)], dim=1) + self.shift(P, prefix_mask)
        return positions + self.first if self.first else positions

    def shift(self, P: int, prefix_mask: Tensor | None) -> int | Tensor:
        """What P prefix tokens add to the positions of the steps: an int, or [B, 1] long."""
        if isinstance(self.config, SinusoidalConfig):
            counted = self.config.prefix == "counted"
        else:
            counted = isinstance(self.config, TimeRopeConfig) and self.config.cross == "queries"
        if not counted:
            return 0
        return P if prefix_mask is None else prefix_mask.sum(dim=1, keepdim=True)

    def table(
        self,
        steps: Tensor,
        num_frames: int | Tensor | None,
        P: int = 0,
        prefix_mask: Tensor | None = None,
        side: int = 1,
    ) -> Tensor | None:
        """Rotary table (lm/ops/rotary.py) of P prefix tokens, then the steps [S], which are squares of frames if side >
        1; None without rotary embedding."""
        return self._table(self.of(steps, P, prefix_mask), num_frames, side)

    def table_after(
        self, steps: Tensor, num_frames: int | Tensor | None, P: int, prefix_mask: Tensor | None
    ) -> Tensor | None:
        """As `table`, of the steps alone, after a prefix that was read before."""
        return self._table(self.of(steps, 0, None) + self.shift(P, prefix_mask), num_frames)

    def _table(self, positions: Tensor, num_frames: int | Tensor | None, side: int = 1) -> Tensor | None:
        if isinstance(self.config, SinusoidalConfig | LearnedConfig):
            return None
        if self.columns is None:
            coordinates = positions.unsqueeze(-1)
        else:
            frames = self.arrangement.current_frames(positions.clamp(min=0), num_frames)
            coordinates = grid_coordinates(positions, frames, self.columns // side, self.cells)
        scaling = self.config.scaling if isinstance(self.config, TimeRopeConfig) else None
        table = rotary_table(coordinates, self.head_width, self.config.base, scaling)
        if isinstance(self.config, GridRopeConfig) and self.config.before == "zero":
            table = table * (positions >= 0)[..., None, None]
        return table

    def add(self, x: Tensor, steps: Tensor, P: int = 0, prefix_mask: Tensor | None = None) -> Tensor:
        """x [B, P + S, D] plus sinusoidal or learned position embeddings, if the model uses them."""
        return self._add(x, self.of(steps, P, prefix_mask))

    def add_after(self, x: Tensor, steps: Tensor, P: int, prefix_mask: Tensor | None) -> Tensor:
        """As `add`, for x [B, S, D] of the steps alone, after a prefix that was read before."""
        return self._add(x, self.of(steps, 0, None) + self.shift(P, prefix_mask))

    def _add(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.vectors is not None:  # the conditions' prefix has none
            added = self.vectors[positions.clamp(min=0)]
            return x + added.masked_fill((positions < 0).unsqueeze(-1), 0.0).to(x.dtype)
        if not isinstance(self.config, SinusoidalConfig):
            return x
        return x + sinusoidal_embedding(positions, self.width, self.config.base).to(x.dtype)


def count_back(mask: Tensor) -> Tensor:
    """Positions of prefix tokens: -1 for a row's last real one, -2 before it, and so on; long like mask [B, P]."""
    return -mask.long().flip(1).cumsum(1).flip(1)
