"""What generation hands back: codes, the media made of them, and how to save both."""

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

from ..tokenize.spec import AudioGeometry, TokenSpec

SUFFIXES = {"audio": (".wav", ".flac"), "picture": (".png", ".jpg", ".jpeg", ".webp")}
"""Files a kind of media is saved as; the first is used in directories."""


class GenerationWarning(UserWarning):
    """Something about a call that is likely to make its samples worse than they could be. Each is issued as a Python
    warning and stands in `Result.warnings`; the command line prints it as one line on stderr."""


@dataclass(frozen=True)
class Result:
    """Generated samples. `len(result)` counts them, `result[i]` is the i-th as a Result of one."""

    codes: Tensor
    """[B, K, T] long, on the CPU; frames beyond a sample's length are 0. A prompt's frames come first."""
    lengths: Tensor
    """[B] long, frames of each sample."""
    media: list[Tensor]
    """Each sample, float32: audio [C, lengths[i] * samples per frame] or a picture [C, height, width], in [-1, 1]."""
    seeds: tuple[int, ...]
    """The seed of each sample: generating with n=1 and this seed makes it again."""
    ended: tuple[bool, ...]
    """Whether each sample came to its own end (or is a picture); False where max_frames cut it."""
    spec: TokenSpec
    warnings: tuple[str, ...] = ()
    """What is likely to be wrong with the samples, one sentence each; empty where nothing is known to be. Of the call
    as a whole: `result[i]` has the same."""

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
            warnings=self.warnings,
        )

    def __iter__(self) -> Iterator[Result]:
        return (self[i] for i in range(len(self)))

    @property
    def num_frames(self) -> int:
        """Frames of all samples together."""
        return int(self.lengths.sum())

    @property
    def seconds(self) -> float:
        """Length of all audio together; 0 for pictures."""
        geometry = self.spec.geometry
        return self.num_frames / geometry.frame_rate if isinstance(geometry, AudioGeometry) else 0.0

    def save(self, path: str | Path, scale: int = 1) -> list[Path]:
        """Write the media: one file, or a directory of 0000.png, 0001.png, ... (.wav for audio).

        Args:
            path: a name that ends in .png, .jpg, .webp (pictures), .wav or .flac (audio) is a file and takes one
                sample; a name without such an ending is a directory, made when missing.
            scale: of pictures: repeat each pixel so many times in both directions.
        Returns:
            the files written, one a sample.
        Raises:
            ValueError: several samples into one file, a suffix that is not written, a scale of sound or below 1.
        """
        targets = output_files(path, len(self), self.spec)
        if scale != 1:
            check_images(self.spec, f"scale is {scale}")
        for target, media in zip(targets, self.media, strict=True):
            save_media(target, media, self.spec, scale)
        return targets

    def save_grid(self, path: str | Path, columns: int | None = None, scale: int = 1) -> Path:
        """Write all pictures on one sheet, row by row, with a thin line between them.

        Args:
            path: a name that ends in .png, .jpg or .webp.
            columns: pictures of a row; None: as many as make the sheet about square.
            scale: as of `save`.
        Raises:
            ValueError: samples of sound, another suffix, columns below 1.
        """
        (target,) = output_files(path, 1, self.spec)
        check_images(self.spec, "a grid was asked for")
        if target != Path(path):
            raise ValueError(f"{path}: a grid is one picture; use a name ending in {' or '.join(SUFFIXES['picture'])}")
        save_media(target, make_grid(self.media, columns), self.spec, scale)
        return target


def join_results(parts: Sequence[Result]) -> Result:
    """The samples of several results as one."""
    longest = max(part.codes.shape[2] for part in parts)
    padded = [torch.nn.functional.pad(part.codes, (0, longest - part.codes.shape[2])) for part in parts]
    return Result(
        codes=torch.cat(padded),
        lengths=torch.cat([part.lengths for part in parts]),
        media=[media for part in parts for media in part.media],
        seeds=tuple(seed for part in parts for seed in part.seeds),
        ended=tuple(ended for part in parts for ended in part.ended),
        spec=parts[0].spec,
        warnings=tuple(dict.fromkeys(text for part in parts for text in part.warnings)),
    )


def issue_warnings(notes: Sequence[str], stacklevel: int = 3) -> tuple[str, ...]:
    """Issue each different note as a GenerationWarning, and give them for `Result.warnings`.

    Args:
        stacklevel: as of `warnings.warn`, counted from here; 3: the caller of the function that calls this one.
    """
    different = tuple(dict.fromkeys(notes))
    for note in different:
        warnings.warn(note, GenerationWarning, stacklevel=stacklevel)
    return different


def check_images(spec: TokenSpec, asked: str) -> None:
    """ValueError where samples are no pictures; `asked`: what was asked of them."""
    if isinstance(spec.geometry, AudioGeometry):
        raise ValueError(f"{asked}, but '{spec.name}' makes sound; leave it out")


def make_grid(pictures: Sequence[Tensor], columns: int | None = None) -> Tensor:
    """Pictures [C, height, width] on a sheet [C, *, *], row by row; places between and behind them are white."""
    columns = math.ceil(len(pictures) ** 0.5) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, found {columns}")
    C, height, width = pictures[0].shape
    gap = grid_gap(height, width)
    columns, rows = min(columns, len(pictures)), math.ceil(len(pictures) / columns)
    sheet = torch.ones(C, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def grid_gap(height: int, width: int) -> int:
    """Pixels between two pictures of a sheet."""
    return max(1, max(height, width) // 32)


def output_files(path: str | Path, count: int, spec: TokenSpec) -> list[Path]:
    """The files that `Result.save` writes for `count` samples; raises its ValueErrors before anything is generated."""
    path = Path(path)
    allowed = SUFFIXES[spec.geometry.kind]
    suffix = path.suffix.lower()
    # of os.path, which take a name that is too long for one that is not there
    if os.path.isdir(path) or not re.fullmatch(r"\.[a-z][a-z0-9]*", suffix):
        if os.path.isfile(path):
            raise ValueError(f"{path}: a file is in the way; name a directory, or a file ending in {allowed[0]}")
        digits = max(4, len(str(count - 1)))
        return [path / f"{i:0{digits}d}{allowed[0]}" for i in range(count)]
    if suffix not in allowed:
        kind = "pictures" if spec.geometry.kind == "picture" else "sound"
        raise ValueError(
            f"{path}: '{spec.name}' makes {kind}; use a name ending in {' or '.join(allowed)}, not '{path.suffix}' "
            "(for a directory one without a dot)"
        )
    if count != 1:
        folder = path.with_suffix("")
        raise ValueError(f"{path}: {count} samples do not fit into one file; name a directory, for instance {folder}/")
    return [path]


def save_media(path: Path, media: Tensor, spec: TokenSpec, scale: int = 1) -> None:
    """Write one sample: audio at the tokenizer's sample rate, a picture `scale` times enlarged."""
    from ..tokenize.data.media import write_audio, write_image  # here, so that a Result needs no codec libraries

    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(spec.geometry, AudioGeometry):
        write_audio(path, media, spec.geometry.sample_rate)
    else:
        write_image(path, media, scale)
