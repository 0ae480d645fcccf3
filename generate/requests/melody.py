"""Melodies: a recording becomes the pitch classes that condition the samples."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...lm.conditioning.chroma import chroma
from ...lm.conditioning.melody import MelodyConditionConfig
from ...tokenize.spec import AudioGeometry, Geometry
from .arguments import tensor
from .prompt import Prompt


def melody_classes(melody: Prompt, geometry: Geometry, config: MelodyConditionConfig) -> Tensor:
    """Pitch classes [T, bins] of a melody.

    Args:
        melody: the path of an audio file, or samples (floating point, [C, N]) at the model's sample rate; channels are
            averaged.
    Raises:
        ValueError: another type, no samples or non-finite ones, or samples of another rate than is analyzed.
            FileNotFoundError: no such file.
    """
    from ...tokenize.data.media import read_audio

    wanted = config.chroma.sample_rate
    if isinstance(melody, str | Path):
        samples = read_audio(Path(melody), wanted, 1)
    else:
        samples = tensor("the melody", melody, "a path or samples (floating point, [C, N])")
        rate = geometry.sample_rate if isinstance(geometry, AudioGeometry) else None
        if rate != wanted:
            raise ValueError(f"the melody is analyzed at {wanted} Hz and the model's rate is {rate}; give a file")
    if samples.dim() != 2 or not samples.numel() or not samples.is_floating_point():
        found = f"{samples.dtype} {list(samples.shape)}"
        raise ValueError(f"the melody must be samples, floating point [C, N], found {found}")
    if not bool(samples.isfinite().all()):
        raise ValueError("the melody holds NaN or infinite samples")
    return chroma(samples.cpu().mean(dim=0), config.chroma)
