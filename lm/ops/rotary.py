"""Positions: rotary embedding by time (one coordinate) or on a grid (row and column), or sinusoids or learned vectors
added to the input; for whole sequences and single steps.

Positions count steps of the pattern: 0 is the first audio or image step, and the conditions before it count backwards
from -1, the nearest; or they count from the first of a row's conditions. Padding before these changes nothing.
Source: RoFormer, arXiv:2104.09864; two coordinates as in LlamaGen (arXiv:2406.06525): the first half of the angles
encodes the row, the second the column. Sinusoids as added by MusicGen (arXiv:2306.05284).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import pad

from ...configs.schema import Config, ConfigError
from ...tokenize.spec import Geometry, ImageGeometry


class Llama3ScalingConfig(Config):
    """Rotary frequencies for sequences longer than those of the first training, as in Llama 3.1 (arXiv:2407.21783;
    formula of llama-models): wavelengths above steps / low_factor become `factor` times as long, those below steps /
    high_factor stay, and between them frequencies are interpolated."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(ge=1)
    """How much longer the longest wavelengths become."""
    low_factor: PositiveFloat = 1.0
    """Turns in `steps` up to which a frequency is divided by the whole factor."""
    high_factor: PositiveFloat = 4.0
    """Turns in `steps` from which a frequency stays as it is."""
    steps: PositiveInt = 8192
    """Longest sequence of the first training."""

    @model_validator(mode="after")
    def _check(self) -> Llama3ScalingConfig:
        if self.low_factor >= self.high_factor:
            raise ValueError(f"low_factor {self.low_factor} must be below high_factor {self.high_factor}")
        return self


class TimeRopeConfig(Config):
    """The position is the step."""

    kind: Literal["time"] = "time"
    base: PositiveFloat = 10000.0
    """Base of the rotary frequencies: the longest wavelength is about 6 times this number of steps."""
    scaling: Llama3ScalingConfig | None = None
    """Change of the frequencies; null: none."""
    cross: Literal["none", "queries"] = "none"
    """Rotation in cross-attention. queries: its queries are rotated, its keys are not, so it depends on the position
    itself; positions then count from the first token of the conditions' prefix (Parler-TTS)."""


class GridRopeConfig(Config):
    """The position is the row and the column of the frame that a step predicts."""

    kind: Literal["grid"] = "grid"
    columns: PositiveInt | None = None
    """Columns of the grid; null: the tokenizer's."""
    base: PositiveFloat = 10000.0
    """Base of the rotary frequencies: the longest wavelength is about 6 times this number of rows or columns."""
    before: Literal["count_back", "zero"] = "count_back"
    """Rotary positions before the first step. count_back: row and column are the (negative) position. zero: multiplied
    by zero instead of rotated, so that their queries and keys vanish (LlamaGen)."""


class SinusoidalConfig(Config):
    """No rotation: sines and cosines of the step are added to the input."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    base: PositiveFloat = 10000.0
    """Base of the frequencies: the longest wavelength is about 6 times this number of steps."""
    prefix: Literal["before", "counted"] = "before"
    """Positions of the conditions' prefix. before: -P .. -1, the steps begin at 0. counted: 0 .. P - 1, the steps begin
    at P."""


class LearnedConfig(Config):
    """No rotation: a learned vector of each frame is added to the input (VAR)."""

    kind: Literal["learned"] = "learned"


RopeConfig = Annotated[TimeRopeConfig | GridRopeConfig | SinusoidalConfig | LearnedConfig, Field(discriminator="kind")]

PAIRS = {"time": 2, "grid": 4, "sinusoidal": 1, "learned": 1}
"""Divisor required of the head width."""


def grid_columns(config: GridRopeConfig, geometry: Geometry) -> int:
    """Columns of the grid; ConfigError if neither the config nor the tokenizer defines them."""
    if config.columns is not None:
        return config.columns
    if isinstance(geometry, ImageGeometry):
        return geometry.columns
    raise ConfigError(
        "rope kind 'grid' needs 'columns': the tokenizer makes audio, which has no grid; use kind 'time' or set columns"
    )


def scale_coordinates(geometry: Geometry) -> Tensor | None:
    """[T, 2] float32: row and column of each frame of a multi-scale image, in cells of its last grid; a coarse cell is
    at its center, between grid cells. None: there are no scales."""
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

    Frames are in raster order on a grid with the given number of columns, or at `places` [T, 2]; steps after the last
    frame, which buffers of a rounded capacity have, are at its place.
    """
    if places is None:
        found = torch.stack([frames // columns, frames % columns], dim=-1)
    else:
        found = places[frames.clamp(max=len(places) - 1)]
    return torch.where((positions < 0).unsqueeze(-1), positions.unsqueeze(-1).to(found.dtype), found)


def rotary_angles(
    coordinates: Tensor, head_width: int, base: float, scaling: Llama3ScalingConfig | None = None
) -> Tensor:
    """Rotation angles of the channel pairs of a head.

    Args:
        coordinates: [*, A] numbers, A = 1 (time) or 2 (row and column).
        head_width: E, a multiple of 2 A.
        base: the slowest pair rotates by about 1 / base per step.
        scaling: change of these frequencies.
    Returns:
        [*, E / 2] float32; coordinate a takes the a-th share of the pairs.
    """
    pairs = head_width // 2 // coordinates.shape[-1]
    # float32 even under autocast: bfloat16 cannot distinguish step 257 from 256
    speeds = base ** (-torch.arange(pairs, device=coordinates.device, dtype=torch.float32) / pairs)
    if scaling is not None:
        turns = scaling.steps * speeds / (2 * math.pi)  # of the longest sequence of the first training
        kept = ((turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)).clamp(0, 1)
        speeds = kept * speeds + (1 - kept) * speeds / scaling.factor
    return (coordinates.to(torch.float32).unsqueeze(-1) * speeds).flatten(-2)


def rotary_table(
    coordinates: Tensor, head_width: int, base: float, scaling: Llama3ScalingConfig | None = None
) -> Tensor:
    """Rotations for `rotate`: complex64 [*, S, 1, E / 2] from coordinates [*, S, A]; see `rotary_angles`."""
    angles = rotary_angles(coordinates, head_width, base, scaling).unsqueeze(-2)
    return torch.complex(angles.cos(), angles.sin())


def sinusoidal_embedding(positions: Tensor, width: int, base: float) -> Tensor:
    """Sinusoidal position embeddings: [*] -> [*, width] float32, cosines, then sines.

    Frequencies range from 1 to 1 / base inclusive; an odd width ends in a 0.
    """
    half = width // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32)
    cosines, sines = _waves(positions, torch.exp(exponents * -(math.log(base) / (half - 1))))
    return pad(torch.cat([cosines, sines], dim=-1), (0, width - 2 * half))


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Position embeddings [length, width], float32: sines, then cosines, of wavelengths 2 pi to 20000 pi
    (arXiv:1706.03762); an odd width ends in a 0."""
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    cosines, sines = _waves(torch.arange(length, device=device), frequencies)
    return pad(torch.cat([sines, cosines], dim=-1), (0, width - 2 * half))


def _waves(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [*, F] of positions [*] at frequencies [F]."""
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the channel pairs (2 i, 2 i + 1) of x [B, S, H, E] by the table's angles; computed in float32, returned in
    x's dtype.

    With complex numbers this is one multiplication: a third of the time of two halves with cosine and sine each.
    Compilers do not support complex numbers, and are fast without them.
    """
    if torch.compiler.is_compiling():
        first, second = at_least_float32(x).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = torch.view_as_real(table).unbind(-1)
        return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(at_least_float32(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """x, or a float32 copy if it is half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
