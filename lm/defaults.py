"""How a model wants to be sampled; stored with it, and overridden by whoever calls generate."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from ..tokenize.config import Config


class GenerationDefaults(Config):
    """Sampling settings. Where a tuple is given it has one value for each codebook."""

    temperature: float | tuple[float, ...] = 1.0
    """Divides the logits; 0 takes the likeliest id."""
    top_k: int | tuple[int, ...] = 0
    """Keep the k likeliest ids; 0 keeps all."""
    top_p: float | tuple[float, ...] = 1.0
    """Keep the likeliest ids that together have this probability; 1 keeps all."""
    min_p: float | tuple[float, ...] = 0.0
    """Drop ids less likely than this share of the likeliest; 0 drops none."""
    guidance: float = Field(default=1.0, ge=0)
    """Classifier-free guidance: 1 none, above it the condition is followed more closely."""
    max_frames: PositiveInt | None = None
    """Frames at most; null: the whole grid of a picture."""
    min_frames: NonNegativeInt = 1
    """No end before this many frames."""
