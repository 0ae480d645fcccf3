"""The types of generation settings as keyword arguments, written from `GenerationConfig` by
tests/generate/test_keyword_types.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from ...lm.guidance_config import Guidance
from ...lm.kv_cache.config import CacheChoice
from ...tokenize.text.coverage import TextSeen


class Settings(TypedDict, total=False):
    """Optional settings of a call: the fields of `GenerationConfig`. The model's defaults apply to those not given."""

    temperature: float | Sequence[float]
    top_k: int | Sequence[int]
    top_p: float | Sequence[float]
    min_p: float | Sequence[float]
    repetition_penalty: float | Sequence[float]
    repetition_window: int | Sequence[int]
    ras: int | Sequence[int]
    ras_tau: float | Sequence[float]
    end_bias: float
    max_silence: float
    silence_codes: Sequence[int]
    end_rule: Literal["drawn", "likeliest"]
    guidance: Guidance | Sequence[float] | dict
    max_frames: int | None
    min_frames: int
    text_characters: int | None
    split: Literal["auto", "off"]
    carry: Literal["audio", "nothing"]
    frames_per_character: Sequence[float] | None
    text_seen: TextSeen | None
    retries: int
    window_frames: int | None
    stride_frames: int | None
    passes: int | None
    pass_schedule: Literal["cosine", "linear", "square", "root", "arccos"]
    choice_temperature: float
    fine_temperature: float | Sequence[float]
    fine_guidance: Guidance | Sequence[float] | dict
    cache: CacheChoice | None
    default_label: str | None
    speed: float
    advance_temperature: float
    draft: int
    step: Literal["auto", "eager", "compiled", "graph"]
