"""Prompts: converts codes, media or a file into the codes that a sample begins with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...tokenize.spec import AudioGeometry
from ...tokenize.tokenizer import Tokenizer
from .arguments import tensor, whole
from .prompt_silence import trim_silence

Prompt = Tensor | str | Path


def prompt_codes(
    prompt: Prompt | None,
    tokenizer: Tokenizer,
    num_frames: int | None = None,
    name: str = "prompt",
    notes: list[str] | None = None,
) -> Tensor | None:
    """Codes [K, t] or [B, K, t] of a prompt; None without a prompt.

    Args:
        prompt: codes (long, [K, t] or [B, K, t]), media (floating point, audio [C, N] at the tokenizer's sample rate
            or an image [C, height, width]), or the path of an audio file, an image, or a file of codes
            (`tessera encode`, .safetensors). An incomplete last frame of audio is dropped.
        num_frames: keep only this number of leading frames.
        name: name of the argument in errors.
        notes: for speech prompts, receives a warning about silence at the ends, which is trimmed from media
            (prompt_silence.py) but kept in codes; a silent recording returns None. None: silence is not checked.
    Raises:
        ValueError: another type, codes of another tokenizer, or fewer frames than num_frames. FileNotFoundError: no
            such file.
    """
    if num_frames is not None:
        num_frames = whole(f"{name}_frames", num_frames)
    if prompt is None:
        return None
    if isinstance(prompt, str | Path):
        prompt = _read(Path(prompt), tokenizer, name)
    prompt = tensor(f"the {name}", prompt, "a path, codes (long, [K, t] or [B, K, t]) or media (floating point)")
    if not prompt.dim():
        raise ValueError(f"a {name} is codes (long, [K, t]) or media (floating point), found one number")
    if prompt.is_floating_point():
        media = _whole_frames(prompt, tokenizer, name)
        if notes is not None and isinstance(tokenizer.spec.geometry, AudioGeometry):
            media = _first_frames(media, tokenizer.spec.geometry, num_frames, name)
            num_frames = None
            media = _trimmed(media, tokenizer, name, notes)
            if media is None:
                return None
        prompt = tokenizer.encode(media[None]).codes[0].cpu()
    elif notes is not None and prompt.dtype == torch.long and prompt.dim() == 2:
        tokenizer.check_codes(prompt[None])
        _note_silence(prompt, tokenizer, name, notes)
    if prompt.dtype != torch.long or prompt.dim() not in (2, 3):
        found = f"{prompt.dtype} {list(prompt.shape)}"
        raise ValueError(f"a {name} is codes (long, [K, t] or [B, K, t]) or media (floating point), found {found}")
    tokenizer.check_codes(prompt if prompt.dim() == 3 else prompt[None])
    if num_frames is None:
        return prompt
    _check_frames(num_frames, prompt.shape[-1], name)
    return prompt[..., :num_frames]


def recording_samples(recording: Prompt, tokenizer: Tokenizer, name: str) -> Tensor:
    """Samples [C, N] of a recording, a file or samples at the tokenizer's rate; ValueError: codes, or another shape."""
    if isinstance(recording, str | Path):
        recording = _read(Path(recording), tokenizer, name)
    found = tensor(f"the {name}", recording, "a path, or samples [C, N] (floating point)")
    if not found.is_floating_point() or found.dim() != 2:
        what = f"{found.dtype} {list(found.shape)}"
        raise ValueError(f"the {name} must be a recording, a file or samples [C, N] (floating point), found {what}")
    return found


def _read(path: Path, tokenizer: Tokenizer, name: str) -> Tensor:
    from ...tokenize.data.codes_file import read_codes
    from ...tokenize.data.media import read_audio, read_image

    if path.suffix == ".safetensors":
        _, items = read_codes(path, tokenizer.spec)
        if len(items) != 1:
            raise ValueError(
                f"{path}: holds the codes of {len(items)} items, a {name} must be a single item; encode one file"
            )
        return items[0].codes
    geometry = tokenizer.spec.geometry
    if isinstance(geometry, AudioGeometry):
        return read_audio(path, geometry.sample_rate, geometry.channels)
    return read_image(path, geometry.height, geometry.width, geometry.channels, fit="crop")


def _check_frames(num_frames: int, found: int, name: str) -> None:
    if not 1 <= num_frames <= found:
        raise ValueError(f"{name}_frames must be from 1 to the {name}'s {found} frames, found {num_frames}")


def _whole_frames(media: Tensor, tokenizer: Tokenizer, name: str) -> Tensor:
    """Audio [C, N] without an incomplete last frame; images are returned unchanged."""
    geometry = tokenizer.spec.geometry
    if isinstance(geometry, AudioGeometry):
        full = media.shape[-1] // geometry.samples_per_frame * geometry.samples_per_frame
        if full == 0:
            raise ValueError(
                f"the {name} has {media.shape[-1]} samples, a frame of '{tokenizer.spec.name}' has "
                f"{geometry.samples_per_frame}; give more"
            )
        media = media[..., :full]
    return media


def _first_frames(media: Tensor, geometry: AudioGeometry, num_frames: int | None, name: str) -> Tensor:
    if num_frames is None:
        return media
    _check_frames(num_frames, media.shape[-1] // geometry.samples_per_frame, name)
    return media[..., : num_frames * geometry.samples_per_frame]


def _trimmed(media: Tensor, tokenizer: Tokenizer, name: str, notes: list[str]) -> Tensor | None:
    """Audio of whole frames without its silent ends; None: it is all silent. Invalid audio, which the tokenizer will
    reject, is returned unchanged."""
    geometry = tokenizer.spec.geometry
    assert isinstance(geometry, AudioGeometry)
    if media.dim() != 2 or not bool(media.isfinite().all()):
        return media
    found = trim_silence(media, geometry.sample_rate)
    if found.note is not None:
        notes.append(f"the {name} {found.note}, left out")
    if found.media is None:
        return None
    if found.media.shape[-1] < geometry.samples_per_frame:
        return media
    return _whole_frames(found.media, tokenizer, name)


def _note_silence(codes: Tensor, tokenizer: Tokenizer, name: str, notes: list[str]) -> None:
    """Warn about silence at the ends of codes [K, t]; the codes are not changed."""
    geometry = tokenizer.spec.geometry
    if isinstance(geometry, AudioGeometry) and codes.shape[1]:
        note = trim_silence(tokenizer.decode(codes[None])[0].float().cpu(), geometry.sample_rate).note
        if note is not None:
            notes.append(f"the {name} {note}; words may be missing: give fewer of its codes, or the original recording")
