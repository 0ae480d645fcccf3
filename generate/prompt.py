"""Prompts: codes, media or a file, turned into the codes that a sample begins with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..tokenize.spec import AudioGeometry
from ..tokenize.tokenizer import Tokenizer

Prompt = Tensor | str | Path


def prompt_codes(
    prompt: Prompt | None, tokenizer: Tokenizer, num_frames: int | None = None, said: str = "prompt"
) -> Tensor | None:
    """Codes [K, t] or [B, K, t] of a prompt, None for none.

    Args:
        prompt: codes (long, [K, t] or [B, K, t]), media (floating point, audio [C, N] at the tokenizer's sample rate
            or a picture [C, height, width]), or the path of a sound, a picture, or a file of codes
            (`tessera encode`, .safetensors). Of sound, a last frame that is not full is left out.
        num_frames: keep only the first so many frames.
        said: what errors call it.
    Raises:
        ValueError: not one of these, codes of another tokenizer, or fewer frames than num_frames. FileNotFoundError: no
            such file.
    """
    if prompt is None:
        return None
    if isinstance(prompt, str | Path):
        prompt = _read(Path(prompt), tokenizer, said)
    if prompt.is_floating_point():
        prompt = _encode(prompt, tokenizer, said)
    if prompt.dtype != torch.long or prompt.dim() not in (2, 3):
        found = f"{prompt.dtype} {list(prompt.shape)}"
        raise ValueError(f"a {said} is codes (long, [K, t] or [B, K, t]) or media (floating point), found {found}")
    tokenizer.check_codes(prompt if prompt.dim() == 3 else prompt[None])
    if num_frames is None:
        return prompt
    if not 1 <= num_frames <= prompt.shape[-1]:
        raise ValueError(f"{said}_frames must be from 1 to the {said}'s {prompt.shape[-1]} frames, found {num_frames}")
    return prompt[..., :num_frames]


def _read(path: Path, tokenizer: Tokenizer, said: str) -> Tensor:
    from ..tokenize.codes_file import read_codes
    from ..tokenize.media import read_audio, read_picture

    if path.suffix == ".safetensors":
        _, items = read_codes(path, tokenizer.spec)
        if len(items) != 1:
            raise ValueError(f"{path}: holds the codes of {len(items)} items, a {said} is one; encode it by itself")
        return items[0].codes
    geometry = tokenizer.spec.geometry
    if isinstance(geometry, AudioGeometry):
        return read_audio(path, geometry.sample_rate, geometry.channels)
    return read_picture(path, geometry.height, geometry.width, geometry.channels, fit="crop")


def _encode(media: Tensor, tokenizer: Tokenizer, said: str) -> Tensor:
    geometry = tokenizer.spec.geometry
    if isinstance(geometry, AudioGeometry):
        full = media.shape[-1] // geometry.samples_per_frame * geometry.samples_per_frame
        if full == 0:
            raise ValueError(
                f"the {said} has {media.shape[-1]} samples, a frame of '{tokenizer.spec.name}' has "
                f"{geometry.samples_per_frame}; give more"
            )
        media = media[..., :full]
    return tokenizer.encode(media[None]).codes[0].cpu()
