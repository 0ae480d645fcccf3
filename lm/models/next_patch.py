"""Next-patch training: the frames of an image grouped into squares, one position per square.

With 2 x 2 squares, the frames of a grid of 2 rows and 4 columns become two positions:

    frames    0 1 2 3        squares    0 0 1 1        a square's input is the mean of its frames' vectors, and all
              4 5 6 7                   0 0 1 1        its frames are predicted from one hidden state

The sequence is side * side times shorter, which reduces the cost of a step accordingly. No parameters are added, and
training ends with single frames (side 1), as used in generation.
Source: Next Patch Prediction, arXiv:2412.15321.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from ...configs.schema import Config, ConfigError
from ...tokenize.spec import Geometry, ImageGeometry
from ..patterns.layouts import ParallelConfig, layout_of
from ..patterns.pattern import CodebookPattern


class PatchPhase(Config):
    """A phase of training that predicts squares of frames."""

    side: int = Field(ge=2, le=64)
    """Side of a square in frames; it divides the rows and the columns of the grid."""
    share: float = Field(gt=0, lt=1)
    """Share of all training steps."""


class Patches:
    """Squares of side x side frames, numbered in raster order.

    Raises:
        ConfigError: the codes are not those of an image, or the squares do not tile its grid.
    """

    def __init__(self, geometry: Geometry, side: int):
        if not isinstance(geometry, ImageGeometry):
            raise ConfigError("train.patches is for images, but the tokenizer is for audio; leave train.patches out")
        if geometry.scales:
            raise ConfigError(
                "train.patches needs a single grid of frames, but the tokenizer has scales; leave train.patches out"
            )
        rows, columns = geometry.rows, geometry.columns
        if rows % side or columns % side:
            raise ConfigError(
                f"patches of {side} x {side} frames do not divide a grid of {rows} x {columns}; use a divisor of both"
            )
        self.area = side * side
        frame = torch.arange(geometry.num_frames, device="cpu")
        self.squares = frame // columns // side * (columns // side) + frame % columns // side
        """[T]: the square of each frame."""
        self.frames = self.squares.argsort(stable=True)
        """[T]: the frames, square by square."""

    def mean(self, x: Tensor) -> Tensor:
        """Average frame vectors [B, T, D] over squares: [B, T / area, D]."""
        return x[:, self.frames.to(x.device)].unflatten(1, (-1, self.area)).mean(dim=2)

    def spread(self, x: Tensor) -> Tensor:
        """Copy square vectors [B, T / area, D] to each of their frames: [B, T, D]."""
        return x[:, self.squares.to(x.device)]


def check_patches(arrangement: CodebookPattern, geometry: Geometry, phases: tuple[PatchPhase, ...]) -> None:
    """Raise ConfigError unless a model with this codebook pattern can be trained on these squares."""
    if not phases:
        return
    parallel = layout_of(ParallelConfig(), arrangement.num_codebooks)
    if arrangement.layout != parallel or arrangement.variable_length:
        raise ConfigError(
            "train.patches needs lm.arrangement: {kind: parallel} and variable_length: false, so that a step is a frame"
        )
    if sum(phase.share for phase in phases) >= 1:
        raise ConfigError("train.patches: the shares sum to 1 or more; lower them, the run must end with single frames")
    for phase in phases:
        Patches(geometry, phase.side)


def side_at(phases: tuple[PatchPhase, ...], step: int, steps: int) -> int:
    """Side of the squares at a step of a run of `steps` steps: the phases in order, then 1."""
    end = 0.0
    for phase in phases:
        end += phase.share * steps
        if step < round(end):
            return phase.side
    return 1
