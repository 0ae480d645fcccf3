"""Silence: the codes that represent it, and a limit on consecutive silent codes.

A model that falls silent tends to stay silent (silence usually follows silence). Forbidding the silent codes of
codebook 0 after a number of them in a row makes it speak or end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...tokenize.spec import AudioGeometry
from ...tokenize.tokenizer import Tokenizer


def silence_codes(tokenizer: Tokenizer, seconds: float = 1.0) -> list[int]:
    """The ids of codebook 0 to which a tokenizer encodes digital silence, in ascending order.

    ValueError: the tokenizer is not an audio tokenizer.
    """
    geometry = tokenizer.spec.geometry
    if not isinstance(geometry, AudioGeometry):
        raise ValueError(f"'{tokenizer.spec.name}' makes images, which have no silence; use max_silence 0")
    frames = max(1, round(seconds * geometry.frame_rate))
    codes = tokenizer.encode(torch.zeros(1, geometry.channels, frames * geometry.samples_per_frame)).codes
    return sorted(set(codes[0, 0].tolist()))


def is_silent(recent: Tensor, silent: Tensor, frames: int) -> Tensor:
    """True [B] where the last `frames` codes of codebook 0 are all silent.

    Args:
        recent: [B, W] long, W >= frames, the latest last, -1 for none.
        silent: [V] bool, True for silent ids.
    """
    last = recent[:, -frames:]
    return (silent[last.clamp(min=0)] & (last >= 0)).all(dim=1)
