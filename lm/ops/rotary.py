"""Positions: rotations by time (one coordinate) or on a grid (row and column), or sinusoids added to the input; for
whole sequences and single steps alike.

Positions count steps of the arranged sequence: 0 is the first audio or picture step, and what stands before it
(conditions) is counted back from there, -1 the nearest. So padding before a row's condition changes nothing.
Source: RoFormer, arXiv:2104.09864; two coordinates as in LlamaGen (arXiv:2406.06525): the first half of the angles
turns by row, the second by column. Sinusoids as MusicGen adds them (arXiv:2306.05284).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from ...configs.schema import Config, ConfigError
from ...tokenize.spec import Geometry, ImageGeometry


class TimeRopeConfig(Config):
    """Position is the step."""

    kind: Literal["time"] = "time"
    base: PositiveFloat = 10000.0
    """The longest wavelength is about 6 times as many steps."""


class GridRopeConfig(Config):
    """Position is the row and the column of the frame a step works on."""

    kind: Literal["grid"] = "grid"
    columns: PositiveInt | None = None
    """Frames in a row of the grid; null: as the tokenizer says."""
    base: PositiveFloat = 10000.0
    before: Literal["count_back", "zero"] = "count_back"
    """What stands before the first step. count_back: its row and column are its (negative) position. zero: it is turned
    by zero instead of by an angle, so that its queries and keys vanish (LlamaGen)."""


class SinusoidalConfig(Config):
    """Nothing is rotated: sines and cosines of the step are added to the input."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    base: PositiveFloat = 10000.0
    """The longest wavelength is about 6 times as many steps."""


RopeConfig = Annotated[TimeRopeConfig | GridRopeConfig | SinusoidalConfig, Field(discriminator="kind")]

PAIRS = {"time": 2, "grid": 4, "sinusoidal": 1}
"""What the width of a head must be a multiple of."""


def grid_columns(config: GridRopeConfig, geometry: Geometry) -> int:
    """Columns of the grid; ConfigError where neither the config nor the tokenizer says."""
    if config.columns is not None:
        return config.columns
    if isinstance(geometry, ImageGeometry):
        return geometry.columns
    raise ConfigError(
        "rope kind 'grid' needs 'columns': the tokenizer makes audio, which has no grid; use kind 'time' or set columns"
    )


def places_of_scales(geometry: Geometry) -> Tensor | None:
    """[T, 2] float32: row and column of each frame of a picture of several scales, in cells of its last grid, where
    the middle of a coarse cell stands between them; None: there are no scales."""
    if not isinstance(geometry, ImageGeometry) or not geometry.scales:
        return None
    found = []
    for rows, columns in geometry.scales:
        row = (torch.arange(rows, device="cpu") + 0.5) * geometry.rows / rows - 0.5
        column = (torch.arange(columns, device="cpu") + 0.5) * geometry.columns / columns - 0.5
        found.append(torch.cartesian_prod(row, column))
    return torch.cat(found)


def grid_coordinates(positions: Tensor, frames: Tensor, columns: int, places: Tensor | None = None) -> Tensor:
    """[*, 2] row and column: of `frames` where positions >= 0; before that both are the (negative) position itself.

    Frames are counted row by row in a grid of so many columns, or stand at `places` [T, 2].
    """
    found = torch.stack([frames // columns, frames % columns], dim=-1) if places is None else places[frames]
    return torch.where((positions < 0).unsqueeze(-1), positions.unsqueeze(-1).to(found.dtype), found)


def rotary_angles(coordinates: Tensor, head_width: int, base: float) -> Tensor:
    """Angles of the pairs of a head.

    Args:
        coordinates: [*, A] numbers, A = 1 (time) or 2 (row and column).
        head_width: E, a multiple of 2 A.
        base: the slowest pair turns by about 1 / base a step.
    Returns:
        [*, E / 2] float32; coordinate a has the a-th share of the pairs.
    """
    pairs = head_width // 2 // coordinates.shape[-1]
    # fp32 whatever the autocast: bf16 cannot tell step 257 from 256
    speeds = base ** (-torch.arange(pairs, device=coordinates.device, dtype=torch.float32) / pairs)
    return (coordinates.to(torch.float32).unsqueeze(-1) * speeds).flatten(-2)


def rotary_table(coordinates: Tensor, head_width: int, base: float) -> Tensor:
    """Turns for `rotate`: complex64 [*, S, 1, E / 2] from coordinates [*, S, A]."""
    angles = rotary_angles(coordinates, head_width, base).unsqueeze(-2)
    return torch.complex(angles.cos(), angles.sin())


def sinusoidal_places(positions: Tensor, width: int, base: float) -> Tensor:
    """What stands for positions in the input: [*] -> [*, width] float32, cosines and then sines.

    The speeds go from 1 to 1 / base, both included; an odd width ends in a 0.
    """
    half = width // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32)
    speeds = torch.exp(exponents * -(math.log(base) / (half - 1)))
    angles = positions.to(torch.float32).unsqueeze(-1) * speeds
    return torch.nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width - 2 * half))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the pairs (2 i, 2 i + 1) of x [B, S, H, E] by the table's angles; computed in float32, returned in x's
    dtype.

    As complex numbers it is one multiplication: a third of the time of two halves, each with cosine and sine. Compilers
    have no complex numbers, and need none to be fast.
    """
    if torch.compiler.is_compiling():
        first, second = at_least_float32(x).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = torch.view_as_real(table).unbind(-1)
        return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(at_least_float32(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """x, or a float32 copy where it is half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
