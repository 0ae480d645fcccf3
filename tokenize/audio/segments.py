"""Audio encoded in segments: each is encoded alone, at a loudness of 1 if wanted, and decoded segments are cross-faded.

    samples    0 ------------------------------------------------------ N
    segment 0  [ frames * hop       ]
    segment 1               [ frames * hop       ]       starts `stride` samples later; the last one can be shorter
    codes      [ frames     ][ frames     ][ ..  ]       one after the other, so a frame is not `hop` samples of the sum

A segment that would only repeat the end of the one before it is left out. Where segments overlap, their samples are
averaged with the weights of a triangle over each segment.

Source: EnCodec at 48 kHz, arXiv:2210.13438, section 3.4 and `encodec/model.py`, `encodec/utils.py` (MIT), which encode
another, tiny segment if N exceeds a segment's start by no more than the overlap.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from ...configs.schema import Config
from ..spec import SegmentGeometry


class SegmentsConfig(Config):
    """Audio is encoded and decoded in segments of equal length, each alone."""

    frames: PositiveInt
    """Frames of a segment."""
    stride: PositiveInt
    """Samples between the starts of two segments, at most frames * hop; the rest of a segment overlaps the next."""
    normalize: bool = False
    """Divide each segment by its scale before encoding: the RMS of its channels' mean. Codes do not hold the scale."""
    level: PositiveFloat = 0.1
    """With `normalize`: scale of decoded segments if none is given. 0.1 is of common loudness, 1 clips in files."""

    @property
    def geometry(self) -> SegmentGeometry:
        """Segments as part of the geometry of codes."""
        return SegmentGeometry(frames=self.frames, samples=self.stride)


def segment_scale(samples: Tensor) -> Tensor:
    """Loudness of a segment [C, n], never 0: scalar float32."""
    return samples.mean(dim=0).square().mean().sqrt() + 1e-8


class SegmentEncoder:
    """Encodes audio that arrives in pieces; a segment's codes are ready when it is complete."""

    def __init__(self, config: SegmentsConfig, hop: int, encode: Callable[[Tensor], Tensor]):
        """encode: samples [C, n] of one segment, n <= frames * hop -> codes [K, t]."""
        self.config, self.encode = config, encode
        self.length = config.frames * hop
        self.held: Tensor | None = None
        self.first = True
        self.scales: list[Tensor] = []
        """Scales of the segments encoded so far, scalars; empty without `normalize`."""

    def push(self, samples: Tensor) -> list[Tensor]:
        """Add samples [C, n]; returns codes [K, t] of the segments that are ready."""
        self.held = samples if self.held is None else torch.cat([self.held, samples], dim=1)
        ready = []
        while self.held.shape[1] >= self.length:
            ready.append(self._next(self.held[:, : self.length]))
            self.held = self.held[:, self.config.stride :]
        return ready

    def finish(self) -> list[Tensor]:
        """End the audio; returns the codes of the last segment, if there is more than the overlap."""
        held, overlap = self.held, 0 if self.first else self.length - self.config.stride
        return [self._next(held)] if held is not None and held.shape[1] > overlap else []

    def _next(self, samples: Tensor) -> Tensor:
        self.first = False
        if self.config.normalize:
            self.scales.append(segment_scale(samples))
            samples = samples / self.scales[-1]
        return self.encode(samples)


class SegmentDecoder:
    """Decodes codes that arrive in pieces; samples are ready when no later segment overlaps them."""

    def __init__(
        self, config: SegmentsConfig, hop: int, decode: Callable[[Tensor], Tensor], scales: Tensor | None = None
    ):
        """decode: codes [K, t] of one segment -> samples [C, t * hop]. scales: [segments]; None: `level`."""
        self.config, self.decode, self.scales = config, decode, scales
        self.hop, self.number = hop, 0
        self.codes: Tensor | None = None
        self.sum: Tensor | None = None  # [C, n], weighted samples from the start of the next segment on
        length = config.frames * hop
        place = torch.arange(1, length + 1) / (length + 1)
        self.triangle = 0.5 - (place - 0.5).abs()
        self.weight = self.triangle.new_zeros(0)  # [n]

    def push(self, codes: Tensor) -> list[Tensor]:
        """Add codes [K, t]; returns the samples [C, n] that are ready."""
        self.codes = codes if self.codes is None else torch.cat([self.codes, codes], dim=1)
        ready, frames = [], self.config.frames
        while self.codes.shape[1] >= frames:
            self._add(self.codes[:, :frames])
            ready.append(self._take(self.config.stride))
            self.codes = self.codes[:, frames:]
        return ready

    def finish(self) -> list[Tensor]:
        """End the codes; returns the remaining samples."""
        if self.codes is not None and self.codes.shape[1]:
            self._add(self.codes)
        return [self._take(self.sum.shape[1])] if self.sum is not None and self.sum.shape[1] else []

    def _add(self, codes: Tensor) -> None:
        """Decode a segment and add it to the samples that are not ready."""
        samples = self.decode(codes) * self._scale()
        weight = self.triangle[: samples.shape[1]].to(samples.device)
        held = samples.new_zeros(samples.shape[0], 0) if self.sum is None else self.sum
        self.sum, self.weight = _plus(held, samples * weight), _plus(self.weight.to(weight.device), weight)

    def _take(self, count: int) -> Tensor:
        assert self.sum is not None
        ready = self.sum[:, :count] / self.weight[:count]
        self.sum, self.weight = self.sum[:, count:], self.weight[count:]
        return ready

    def _scale(self) -> Tensor | float:
        if not self.config.normalize:
            return 1.0
        self.number += 1
        return self.config.level if self.scales is None else self.scales[self.number - 1]


def _plus(one: Tensor, other: Tensor) -> Tensor:
    """Sum of [..., n] and [..., m], aligned at their starts; the shorter one is completed with zeros."""
    size = max(one.shape[-1], other.shape[-1])
    pad = torch.nn.functional.pad
    return pad(one, (0, size - one.shape[-1])) + pad(other, (0, size - other.shape[-1]))
