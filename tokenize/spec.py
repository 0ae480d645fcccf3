"""TokenSpec: the meaning of codes and the frozen tokenizer that made them. This file does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ..configs.names import ShownName
from ..configs.schema import Config, FingerprintedConfig


class SegmentGeometry(Config):
    """Segments that are encoded alone, and overlap (tokenize/audio/segments.py)."""

    frames: PositiveInt
    """Frames of each segment."""
    samples: PositiveInt
    """Samples between the starts of two segments."""


class AudioGeometry(FingerprintedConfig):
    """Frames are time steps of equal length."""

    added = frozenset({"segment"})

    kind: Literal["audio"] = "audio"
    sample_rate: PositiveInt
    """Samples per second, Hz."""
    channels: PositiveInt = 1
    samples_per_frame: PositiveInt
    segment: SegmentGeometry | None = None
    """Segments, where the codes of one follow those of another; null: the frames are contiguous."""

    @property
    def frame_rate(self) -> float:
        """Frames per second; of long audio, if there are segments."""
        if self.segment is not None:
            return self.sample_rate * self.segment.frames / self.segment.samples
        return self.sample_rate / self.samples_per_frame

    def count_frames(self, num_samples: int) -> int:
        """Frames of audio with this many samples; an incomplete last frame counts."""
        hop, segment = self.samples_per_frame, self.segment
        if segment is None:
            return -(-num_samples // hop)
        overlap = segment.frames * hop - segment.samples
        before = max(0, -(-(num_samples - overlap) // segment.samples) - 1)
        return before * segment.frames + -(-(num_samples - before * segment.samples) // hop)

    def count_samples(self, num_frames: int) -> int:
        """Samples that this many frames are decoded to."""
        hop, segment = self.samples_per_frame, self.segment
        if segment is None or num_frames <= segment.frames:
            return num_frames * hop
        before = -(-num_frames // segment.frames) - 1
        overlap = segment.frames * hop - segment.samples
        return before * segment.samples + max(overlap, (num_frames - before * segment.frames) * hop)


class ImageGeometry(FingerprintedConfig):
    """Frames are the cells of one grid in raster order (row by row), or of several grids, concatenated."""

    added = frozenset({"scales"})
    kind: Literal["picture"] = "picture"
    height: PositiveInt
    width: PositiveInt
    channels: PositiveInt = 3
    rows: PositiveInt
    columns: PositiveInt
    scales: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    """Rows and columns of each grid, coarse to fine; each grid is one scale of the whole image (VAR,
    arXiv:2404.02905), and the last is rows by columns. Empty: only that last grid."""

    @property
    def num_frames(self) -> int:
        """Frames per image: the cells of its grid or of all its grids."""
        return sum(rows * columns for rows, columns in self.scales) or self.rows * self.columns


Geometry = Annotated[AudioGeometry | ImageGeometry, Field(discriminator="kind")]


class TokenSpec(Config):
    """Stored in every shard and model; codes are valid only for the tokenizer with this fingerprint."""

    name: ShownName
    cardinalities: tuple[Annotated[int, Field(ge=1, le=1 << 32)], ...] = Field(min_length=1, max_length=1024)
    """Size of each codebook, coarse codebook first."""
    geometry: Geometry
    fingerprint: str
    """SHA-256 (hex) of the config and weights of the frozen tokenizer."""

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.cardinalities)


def check_same_tokenizer(found: TokenSpec, expected: TokenSpec, what: str) -> None:
    """Raise ValueError if `what` (for instance "shards out/digits") was made by another tokenizer."""
    if found.fingerprint != expected.fingerprint:
        raise ValueError(
            f"{what}: codes of tokenizer '{found.name}' ({found.fingerprint[:12]}), but '{expected.name}' "
            f"({expected.fingerprint[:12]}) is in use here; encode the media again with '{expected.name}' or "
            f"pass its tokenizer"
        )
