"""TokenSpec: what a set of codes means, and which frozen tokenizer made them. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ..configs.names import ShownName
from ..configs.schema import Config, GrowingConfig


class AudioGeometry(Config):
    """Frames are equal spans of time."""

    kind: Literal["audio"] = "audio"
    sample_rate: PositiveInt
    """Samples per second, Hz."""
    channels: PositiveInt = 1
    samples_per_frame: PositiveInt

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.samples_per_frame


class ImageGeometry(GrowingConfig):
    """Frames are the cells of a grid in raster order (row by row), or those of several grids, one after another."""

    added = frozenset({"scales"})
    kind: Literal["picture"] = "picture"
    height: PositiveInt
    width: PositiveInt
    channels: PositiveInt = 3
    rows: PositiveInt
    columns: PositiveInt
    scales: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    """Rows and columns of each grid, coarse to fine, where each is one scale of the whole picture (VAR,
    arXiv:2404.02905); the last is rows by columns. Empty: there is that one alone."""

    @property
    def num_frames(self) -> int:
        """Frames of one picture: the cells of its grid, or of all its grids."""
        return sum(rows * columns for rows, columns in self.scales) or self.rows * self.columns


Geometry = Annotated[AudioGeometry | ImageGeometry, Field(discriminator="kind")]


class TokenSpec(Config):
    """Travels with every shard and every model; codes are only meaningful to the tokenizer with this fingerprint."""

    name: ShownName
    cardinalities: tuple[Annotated[int, Field(ge=1, le=1 << 32)], ...] = Field(min_length=1, max_length=1024)
    """Codes per codebook, coarse codebook first."""
    geometry: Geometry
    fingerprint: str
    """SHA-256 (hex) over config and weights of the frozen tokenizer."""

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.cardinalities)


def check_same_tokenizer(found: TokenSpec, expected: TokenSpec, what: str) -> None:
    """Raise ValueError when `what` (for instance "shards out/digits") was made by another tokenizer."""
    if found.fingerprint != expected.fingerprint:
        raise ValueError(
            f"{what}: codes of tokenizer '{found.name}' ({found.fingerprint[:12]}), but '{expected.name}' "
            f"({expected.fingerprint[:12]}) is in use here; encode the media again with '{expected.name}' or "
            f"pass its tokenizer"
        )
