"""The result of generation: codes, decoded media, and functions that save media."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..tokenize.alignment.spoken_text import SpokenText, join_units
from ..tokenize.codes import pad_and_cat
from ..tokenize.spec import AudioGeometry, TokenSpec

SUFFIXES = {"audio": (".wav", ".flac"), "picture": (".png", ".jpg", ".jpeg", ".webp")}
"""File suffixes of each kind of media; the first is used in directories."""


class GenerationWarning(UserWarning):
    """A likely quality problem of a call. Each is issued as a Python warning and listed in `Result.warnings`; the
    command line prints it as one line on stderr."""


@dataclass(frozen=True)
class Result:
    """Generated samples. `len(result)` is their number, `result[i]` the i-th sample as a Result."""

    codes: Tensor
    """[B, K, T] long, on the CPU; frames beyond a sample's length are 0. The prompt's frames come first."""
    lengths: Tensor
    """[B] long, number of frames of each sample."""
    media: list[Tensor]
    """Each sample, float32: audio [C, lengths[i] * samples per frame] or an image [C, height, width], in [-1, 1]."""
    seeds: tuple[int, ...]
    """The seed of each sample: generating with n=1 and this seed reproduces it."""
    ended: tuple[bool, ...]
    """Whether each sample ended by itself (or is an image); False if max_frames cut it off."""
    spec: TokenSpec
    units: Tensor | None = None
    """[B, T] long: the unit of an aligned text that each frame speaks, -1 beyond a sample's length; None: no such
    text."""
    alignments: tuple[SpokenText, ...] = ()
    """What each sample says and when, for a model with an aligned text; see `alignment`."""
    warnings: tuple[str, ...] = ()
    """Likely problems of the samples, one sentence each; empty if none are known. They apply to the whole call:
    `result[i]` has the same ones."""

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Result:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        i = index % len(self)
        length = int(self.lengths[i])
        return Result(
            codes=self.codes[i : i + 1, :, :length],
            lengths=self.lengths[i : i + 1],
            media=[self.media[i]],
            seeds=(self.seeds[i],),
            ended=(self.ended[i],),
            spec=self.spec,
            units=None if self.units is None else self.units[i : i + 1, :length],
            alignments=self.alignments[i : i + 1],
            warnings=self.warnings,
        )

    @property
    def alignment(self) -> SpokenText:
        """What the only sample says, with the time of each word. ValueError: several samples, or a model without an
        aligned text."""
        if not self.alignments:
            raise ValueError("the model has no aligned text, so the times of the words are unknown")
        if len(self) != 1:
            raise ValueError(f"the result has {len(self)} samples; use result[i].alignment or result.alignments")
        return self.alignments[0]

    def __iter__(self) -> Iterator[Result]:
        return (self[i] for i in range(len(self)))

    @property
    def num_frames(self) -> int:
        """Total frames of all samples."""
        return int(self.lengths.sum())

    @property
    def seconds(self) -> float:
        """Total duration of the audio; 0 for images."""
        geometry = self.spec.geometry
        return self.num_frames / geometry.frame_rate if isinstance(geometry, AudioGeometry) else 0.0

    def save(self, path: str | Path, scale: int = 1) -> list[Path]:
        """Write the media: one file, or a directory of 0000.png, 0001.png, ... (.wav for audio).

        Args:
            path: a name that ends in .png, .jpg, .webp (images), .wav or .flac (audio) is a file and takes one
                sample; a name without such an ending is a directory, created if missing.
            scale: for images, the factor by which each pixel is repeated in both directions.
        Returns:
            the files written, one per sample.
        Raises:
            ValueError: several samples for one file, an unsupported suffix, a scale for audio or below 1.
        """
        targets = output_files(path, len(self), self.spec)
        if scale != 1:
            check_images(self.spec, f"scale is {scale}")
        for target, media in zip(targets, self.media, strict=True):
            save_media(target, media, self.spec, scale)
        return targets

    def save_grid(self, path: str | Path, columns: int | None = None, scale: int = 1) -> Path:
        """Write all images as one grid, row by row, with a thin line between them.

        Args:
            path: a name that ends in .png, .jpg or .webp.
            columns: images per row; None: a number that makes the grid about square.
            scale: as in `save`.
        Raises:
            ValueError: audio samples, another suffix, columns below 1.
        """
        (target,) = output_files(path, 1, self.spec)
        check_images(self.spec, "a grid was requested")
        if target != Path(path):
            raise ValueError(f"{path}: a grid is one image; use a name ending in {' or '.join(SUFFIXES['image'])}")
        save_media(target, make_grid(self.media, columns), self.spec, scale)
        return target


def join_results(parts: Sequence[Result]) -> Result:
    """Concatenate the samples of several results."""
    return Result(
        codes=pad_and_cat([part.codes for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        media=[media for part in parts for media in part.media],
        seeds=tuple(seed for part in parts for seed in part.seeds),
        ended=tuple(ended for part in parts for ended in part.ended),
        spec=parts[0].spec,
        units=join_units([part.units for part in parts]),
        alignments=tuple(one for part in parts for one in part.alignments),
        warnings=tuple(dict.fromkeys(text for part in parts for text in part.warnings)),
    )


def issue_warnings(notes: Sequence[str], stacklevel: int = 3) -> tuple[str, ...]:
    """Issue each distinct note as a GenerationWarning and return them for `Result.warnings`.

    Args:
        stacklevel: as in `warnings.warn`, relative to this function; 3: the caller of the function that calls it.
    """
    different = tuple(dict.fromkeys(notes))
    for note in different:
        warnings.warn(note, GenerationWarning, stacklevel=stacklevel)
    return different


def check_images(spec: TokenSpec, asked: str) -> None:
    """Raise ValueError if the samples are not images; `asked`: the request, for the message."""
    if isinstance(spec.geometry, AudioGeometry):
        raise ValueError(f"{asked}, but '{spec.name}' makes audio; leave it out")


def make_grid(images: Sequence[Tensor], columns: int | None = None) -> Tensor:
    """Arrange images [C, height, width] row by row in a grid [C, *, *]; gaps and empty cells are white."""
    columns = math.ceil(len(images) ** 0.5) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, found {columns}")
    C, height, width = images[0].shape
    gap = grid_gap(height, width)
    columns, rows = min(columns, len(images)), math.ceil(len(images) / columns)
    sheet = torch.ones(C, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def grid_gap(height: int, width: int) -> int:
    """Pixels between two images of a grid."""
    return max(1, max(height, width) // 32)


def output_files(path: str | Path, count: int, spec: TokenSpec) -> list[Path]:
    """The files that `Result.save` writes for `count` samples, with its ValueErrors, before anything is generated."""
    path = Path(path)
    allowed = SUFFIXES[spec.geometry.kind]
    suffix = path.suffix.lower()
    # os.path treats a name that is too long as missing; pathlib would raise
    if os.path.isdir(path) or not re.fullmatch(r"\.[a-z][a-z0-9]*", suffix):
        if os.path.isfile(path):
            raise ValueError(f"{path}: is an existing file; name a directory, or a file ending in {allowed[0]}")
        digits = max(4, len(str(count - 1)))
        return [path / f"{i:0{digits}d}{allowed[0]}" for i in range(count)]
    if suffix not in allowed:
        kind = "images" if spec.geometry.kind == "picture" else "audio"
        raise ValueError(
            f"{path}: '{spec.name}' makes {kind}; use a name ending in {' or '.join(allowed)}, not '{path.suffix}' "
            "(for a directory one without a dot)"
        )
    if count != 1:
        folder = path.with_suffix("")
        raise ValueError(f"{path}: {count} samples do not fit into one file; name a directory, for instance {folder}/")
    return [path]


def save_media(path: Path, media: Tensor, spec: TokenSpec, scale: int = 1) -> None:
    """Write one sample: audio at the tokenizer's sample rate, or an image enlarged by `scale`."""
    from ..tokenize.data.media import write_audio, write_image  # local import: a Result needs no codec libraries

    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(spec.geometry, AudioGeometry):
        write_audio(path, media, spec.geometry.sample_rate)
    else:
        write_image(path, media, scale)
