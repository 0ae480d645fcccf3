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
    repetition_penalty: float | tuple[float, ...] = 1.0
    """Makes codes that were drawn lately less likely, in the same row and codebook; 1: off."""
    repetition_window: int | tuple[int, ...] = 16
    """Frames over which the penalty remembers codes."""
    ras: int | tuple[int, ...] = 0
    """Repetition-aware sampling: frames it looks back, 10 is usual; 0: off."""
    ras_tau: float | tuple[float, ...] = 0.1
    """A code that is at least this share of the last `ras` codes is drawn again, without the filters above."""
    end_bias: float = 0.0
    """Added to the logit of the end: above 0 sounds end sooner, below 0 later."""
    max_silence: float = Field(default=0.0, ge=0, le=600)
    """Seconds of silence in a row at most; 0: no limit."""
    silence_codes: tuple[int, ...] = ()
    """Codes of codebook 0 that count as silence; none: those that the tokenizer gives digital silence."""
    guidance: float = Field(default=1.0, ge=0)
    """Classifier-free guidance: 1 none, above it the condition is followed more closely."""
    max_frames: PositiveInt | None = None
    """Frames at most; null: the whole grid of a picture."""
    min_frames: NonNegativeInt = 1
    """No end before this many frames."""
