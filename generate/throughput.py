"""Generation speed measurements, used by `tessera eval` and benchmarks/generate.py."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from ..lm.guidance_config import Guidance
from ..tokenize.spec import AudioGeometry
from .model import Model

PLAIN_TEXT = "one two three four five"


@dataclass(frozen=True)
class Speed:
    """Timings of one configuration."""

    rows: int
    """Batch size."""
    guidance: Guidance
    frames: int
    """Frames of each sample."""
    seconds: list[float]
    """Wall time of each repetition, from the call to the media on the CPU."""
    audio_seconds: float
    """Total duration of the samples of one repetition; 0 for images."""

    @property
    def median(self) -> float:
        """Median wall time in seconds."""
        return statistics.median(self.seconds)

    @property
    def frames_per_second(self) -> float:
        """Frames of all samples divided by the median time."""
        return self.rows * self.frames / self.median


def measure_speed(
    model: Model, rows: int, guidance: Guidance | None = None, frames: int | None = None, repeats: int = 3
) -> Speed:
    """Time `generate`, language model and tokenizer together, after one warm-up run.

    Args:
        guidance: None: the model's default.
        frames: frames per sample, without an end; None: a whole image, or four seconds of audio.
    """
    geometry = model.spec.geometry
    audio = isinstance(geometry, AudioGeometry)
    frames = (frames or round(4 * geometry.frame_rate)) if audio else None
    guidance = model.defaults.guidance if guidance is None else guidance
    seconds, made = [], 0
    for seed in range(repeats + 1):
        started = time.perf_counter()
        result = model.generate(
            n=rows, seed=seed, num_frames=frames, guidance=guidance, batch=rows, **example_condition(model)
        )
        seconds.append(time.perf_counter() - started)
        made, length = int(result.lengths[0]), result.seconds
    return Speed(rows, guidance, made, seconds[1:], length)


def example_condition(model: Model) -> dict:
    """A condition that suits every model of the same kind."""
    if model.reads_text:
        return {"text": PLAIN_TEXT}
    return {"label": 0} if model.labels else {}
