"""Where the tokens of a row stand, and how the transformer is told: by turns of queries and keys, or by sinusoids added
to its input.

conditions' prefix    -P .. -1     counted back from the first step (from the second, where the prefix ends in the
steps                  0 .. S-1    token that stands for the start)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...tokenize.spec import Geometry
from ..ops.rotary import (
    GridRopeConfig,
    RopeConfig,
    SinusoidalConfig,
    grid_columns,
    grid_coordinates,
    places_of_scales,
    rotary_table,
    sinusoidal_places,
)
from ..patterns.pattern import CodebookPattern


class Positions(nn.Module):
    """The positions of one model.

    Args:
        config: how they are told.
        arrangement: says which frame a step predicts, for positions on a grid.
        geometry: the tokenizer's.
        width, head_width: D and E.
        first: where step 0 stands; -1 where the last token of the prefix takes the place of the start.
    Raises:
        ConfigError: a grid that the tokenizer does not have.
    """

    places: Tensor | None
    """[T, 2] where the cells of scales stand; None: there are no scales."""

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
        self.register_buffer("places", places_of_scales(geometry), persistent=False)

    def of(self, steps: Tensor, P: int, prefix_mask: Tensor | None) -> Tensor:
        """[B or 1, P + S] long: where P prefix tokens (prefix_mask [B, P]: the real ones) and the steps [S] stand."""
        positions = steps.unsqueeze(0)
        if P:
            if prefix_mask is None:
                back = torch.arange(-P, 0, device=steps.device).unsqueeze(0)
            else:
                back = count_back(prefix_mask)
            positions = torch.cat([back, steps.expand(back.shape[0], -1)], dim=1)
        return positions + self.first if self.first else positions

    def table(
        self,
        steps: Tensor,
        num_frames: int | Tensor | None,
        P: int = 0,
        prefix_mask: Tensor | None = None,
        side: int = 1,
    ) -> Tensor | None:
        """Rotary table (lm/ops/rotary.py) of P prefix tokens and then the steps [S], which are squares of frames where
        side > 1; None where nothing is rotated."""
        if isinstance(self.config, SinusoidalConfig):
            return None
        positions = self.of(steps, P, prefix_mask)
        if self.columns is None:
            coordinates = positions.unsqueeze(-1)
        else:
            frames = self.arrangement.current_frames(positions.clamp(min=0), num_frames)
            coordinates = grid_coordinates(positions, frames, self.columns // side, self.places)
        table = rotary_table(coordinates, self.head_width, self.config.base)
        if isinstance(self.config, GridRopeConfig) and self.config.before == "zero":
            table = table * (positions >= 0)[..., None, None]
        return table

    def add(self, x: Tensor, steps: Tensor, P: int = 0, prefix_mask: Tensor | None = None) -> Tensor:
        """x [B, P + S, D] with the sinusoids of its positions, where the model has such."""
        if not isinstance(self.config, SinusoidalConfig):
            return x
        return x + sinusoidal_places(self.of(steps, P, prefix_mask), self.width, self.config.base).to(x.dtype)


def count_back(mask: Tensor) -> Tensor:
    """Positions of prefix tokens: -1 for a row's last real one, -2 before it, and so on; long like mask [B, P]."""
    return -mask.long().flip(1).cumsum(1).flip(1)
