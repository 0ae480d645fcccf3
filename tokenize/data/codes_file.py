"""Codes file: written by `tessera encode`, read by `tessera decode` and as prompts.

    codes    [K, T1 + T2 + ...] in the smallest unsigned type, all items concatenated
    offsets  [items + 1] int64: item i is codes[:, offsets[i] : offsets[i + 1]]
    metadata format, spec (TokenSpec), items (name and, for audio, the number of encoded samples), all JSON;
             content_sha256 over all of it, which earlier versions did not write

To any safetensors reader, a file with one item is therefore a plain tensor "codes" [K, T].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from ...configs.files import COPY_AGAIN, read_safetensors, write_safetensors
from ...configs.json_limits import HEADER, parse_json
from ...configs.schema import Config, check_config
from ..codes import code_dtype, concatenate_codes
from ..spec import AudioGeometry, ImageGeometry, TokenSpec, check_same_tokenizer

FORMAT = "tessera-codes"


@dataclass(frozen=True)
class CodesItem:
    """One item of a codes file."""

    name: str
    """Name of the encoded media file."""
    codes: Tensor
    """[K, T] long."""
    num_samples: int | None = None
    """Audio: number of encoded samples; the last frame may extend beyond them. None: all samples of the frames."""


class _ItemNote(Config):
    name: str
    num_samples: PositiveInt | None = None


class _Notes(Config):
    format: Literal["tessera-codes"]
    spec: TokenSpec
    items: list[_ItemNote]


def write_codes(path: str | Path, spec: TokenSpec, items: Sequence[CodesItem]) -> None:
    """Write a codes file atomically. Raises ValueError if there are no items."""
    if not items:
        raise ValueError(f"{path}: no codes to write")
    notes = [_ItemNote(name=item.name, num_samples=item.num_samples).model_dump(mode="json") for item in items]
    metadata = {"format": FORMAT, "spec": spec.model_dump_json(), "items": json.dumps(notes)}
    write_safetensors(path, concatenate_codes([item.codes for item in items], spec), metadata, sealed=True)


def read_codes(path: str | Path, expected: TokenSpec | None = None) -> tuple[TokenSpec, list[CodesItem]]:
    """Read a codes file.

    Args:
        expected: the tokenizer that the codes will be used with.
    Raises:
        FileNotFoundError: no such file. ValueError: not a codes file, codes out of range, or codes of another tokenizer
            than the expected one (both are named).
    """
    tensors, metadata = read_safetensors(path)
    unknown = sorted(metadata.keys() - _Notes.model_fields.keys())
    if metadata.get("format") == FORMAT and unknown:
        raise ValueError(f"{path}: has the unknown metadata {unknown[0][:80]!r}; {COPY_AGAIN}")
    if metadata.get("format") != FORMAT or set(tensors) != {"codes", "offsets"}:
        found = ", ".join(sorted(tensors)[:5])
        raise ValueError(f"{path}: not a file of codes (holds {found}); make one with: tessera encode MEDIA -o FILE")
    data = {key: _parse(metadata.get(key, ""), key, path) for key in _Notes.model_fields}
    notes = check_config(data, _Notes, str(path))
    if expected is not None:
        check_same_tokenizer(notes.spec, expected, str(path))
    codes, ends = _check_tensors(path, tensors["codes"], tensors["offsets"], notes)
    items = []
    for note, start, end in zip(notes.items, ends[:-1], ends[1:], strict=True):
        check_length(path, notes.spec.geometry, note.name, note.num_samples, end - start)
        items.append(CodesItem(note.name, codes[:, start:end].contiguous(), note.num_samples))
    return notes.spec, items


def _parse(text: str, key: str, path: str | Path) -> object:
    return text if key == "format" else parse_json(text, f"{path}: metadata '{key}'", HEADER)


def _check_tensors(path: str | Path, codes: Tensor, offsets: Tensor, notes: _Notes) -> tuple[Tensor, list[int]]:
    """Check codes [K, sum of T] and offsets against each other and the notes; returns long codes and the offsets."""
    spec = notes.spec
    if codes.dim() != 2 or codes.dtype != code_dtype(spec) or codes.shape[0] != spec.num_codebooks:
        wanted = f"{code_dtype(spec)} [{spec.num_codebooks}, frames]"
        raise ValueError(f"{path}: codes are {codes.dtype} {list(codes.shape)}, '{spec.name}' makes {wanted}")
    ends = offsets.tolist() if offsets.dim() == 1 and offsets.dtype == torch.int64 else []
    if len(ends) != len(notes.items) + 1 or ends[0] != 0 or ends[-1] != codes.shape[1] or sorted(set(ends)) != ends:
        raise ValueError(f"{path}: offsets do not split {codes.shape[1]} frames into {len(notes.items)} items")
    codes = codes.long()
    if bool((codes >= torch.tensor(spec.cardinalities)[:, None]).any()):
        raise ValueError(f"{path}: codes up to {codes.amax(1).tolist()}, '{spec.name}' has {list(spec.cardinalities)}")
    return codes, ends


def check_length(
    path: str | Path, geometry: AudioGeometry | ImageGeometry, name: str, num_samples: int | None, frames: int
) -> None:
    """Raise ValueError if the number of frames of an item does not match its image or audio."""
    if isinstance(geometry, ImageGeometry):
        if frames != geometry.num_frames or num_samples is not None:
            raise ValueError(f"{path}: '{name}' has {frames} frames, an image has {geometry.num_frames}")
    elif num_samples is not None and geometry.count_frames(num_samples) != frames:
        raise ValueError(f"{path}: '{name}' has {num_samples} samples in {frames} frames")
