"""Default sampling settings of a model; saved with it, and overridden by the arguments of generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from ..configs.schema import Config
from ..tokenize.text_coverage import TextSeen
from .kv_cache.config import CacheConfig

LARGEST = 1e9
"""Largest factor or divisor of logits: no product overflows."""
SMALLEST_TEMPERATURE = 1e-30
"""Smallest temperature above 0."""

Amount = Annotated[float, Field(ge=0, le=LARGEST)]
PositiveAmount = Annotated[float, Field(gt=0, le=LARGEST)]


class TwoConditions(Config):
    """Guidance by two conditions (MusicGen-Style, arXiv:2407.12563): l_null + s (l_kept + beta (l_all - l_kept) -
    l_null), where l_kept are the logits given the kept conditions only. It runs three rows per sample."""

    keep: tuple[str, ...] = Field(min_length=1)
    """Kinds of the kept conditions, for instance [codes]; beta strengthens the others."""
    beta: Amount = 1.0
    """1: equivalent to a single condition."""


class GuidanceConfig(Config):
    """Settings of every kind of guidance. The scale is s in l_null + s (l_condition - l_null): 1 is no guidance."""

    scale: Amount | tuple[Amount, ...]
    """One value, or one per codebook."""
    filter_top_k: NonNegativeInt = 0
    """Above 0 (Dia): the guided logits only select the k likeliest ids, and the conditional logits give their
    probabilities; 0: sample from the guided logits."""
    two: TwoConditions | None = None


class ConstantGuidance(GuidanceConfig):
    """The same scale at every step."""

    kind: Literal["constant"] = "constant"


class IntervalGuidance(GuidanceConfig):
    """The scale from `start` to `stop` (LlamaGen: until stop), 1 outside; as fractions of the steps, step / steps."""

    kind: Literal["interval"] = "interval"
    start: float = Field(default=0.0, ge=0, le=1)
    stop: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> IntervalGuidance:
        if self.stop <= self.start:
            raise ValueError(f"stop {self.stop} must be above start {self.start}")
        return self


class LinearGuidance(GuidanceConfig):
    """first + (scale - first) p with p = step / steps. VAR's parameter t is scale = 1 + t."""

    kind: Literal["linear"] = "linear"
    first: Amount = 1.0


class CosineGuidance(GuidanceConfig):
    """1 + (scale - 1) (1 - cos(pi p^power)) / 2 with p = step / steps (RAR). MaskBit's parameter s is scale = 1 + s."""

    kind: Literal["cosine"] = "cosine"
    power: PositiveAmount = 1.0
    """Above 1, the scale stays low for longer."""


def _tag(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("kind", "constant")
    if isinstance(value, GuidanceConfig):
        return getattr(value, "kind", None)
    return "scales" if isinstance(value, Sequence) and not isinstance(value, str) else "scale"


Guidance = Annotated[
    Annotated[Amount, Tag("scale")]
    | Annotated[tuple[Amount, ...], Tag("scales")]
    | Annotated[ConstantGuidance, Tag("constant")]
    | Annotated[IntervalGuidance, Tag("interval")]
    | Annotated[LinearGuidance, Tag("linear")]
    | Annotated[CosineGuidance, Tag("cosine")],
    Discriminator(
        _tag,
        custom_error_type="guidance_kind",
        custom_error_message="kind must be one of constant, interval, linear, cosine",
    ),
]
"""A number (or one per codebook) is a constant scale."""


class GenerationConfig(Config):
    """Sampling settings. A tuple has one value per codebook."""

    temperature: float | tuple[float, ...] = 1.0
    """Divides the logits; 0 is greedy decoding. 0, or from 1e-30 to 1e9."""
    top_k: int | tuple[int, ...] = 0
    """Keep the k likeliest ids; 0 keeps all. At most 2^40."""
    top_p: float | tuple[float, ...] = 1.0
    """Keep the likeliest ids whose total probability reaches this value; 1 keeps all."""
    min_p: float | tuple[float, ...] = 0.0
    """Drop ids whose probability is below this fraction of the largest; 0 drops none."""
    repetition_penalty: float | tuple[float, ...] = 1.0
    """Penalize recently sampled codes, per row and codebook; 1: off. From 1e-9 to 1e9."""
    repetition_window: int | tuple[int, ...] = 16
    """Number of recent frames that the penalty considers."""
    ras: int | tuple[int, ...] = 0
    """Repetition-aware sampling: window in frames, typically 10; 0: off."""
    ras_tau: float | tuple[float, ...] = 0.1
    """A code that makes up at least this share of the last `ras` codes is resampled without the filters above."""
    end_bias: float = 0.0
    """Added to the logit of the end token: above 0 sequences end sooner, below 0 later."""
    max_silence: float = Field(default=0.0, ge=0, le=600)
    """Maximum seconds of continuous silence; 0: no limit."""
    silence_codes: tuple[int, ...] = ()
    """Codes of codebook 0 that count as silence; empty: those that the tokenizer assigns to digital silence."""
    end_rule: Literal["drawn", "likeliest"] = "drawn"
    """likeliest (Dia): the end token is sampled only if no other id is likelier."""
    guidance: Guidance = 1.0
    """Classifier-free guidance: 1 is off, larger values follow the condition more closely. A number, one per codebook,
    or a schedule, for instance {kind: linear, scale: 3.0}."""
    max_frames: PositiveInt | None = None
    """Maximum number of frames; null: the whole grid of an image."""
    min_frames: NonNegativeInt = 1
    """Minimum number of frames; for text with known frames_per_character, at least the fewest that it takes."""
    text_characters: PositiveInt | None = None
    """Text length the model was trained on, in characters as it reads them; longer text is split into chunks. null:
    unknown, text is never split (training fills it in from the dataset)."""
    split: Literal["auto", "off"] = "auto"
    """off: text is never split."""
    carry: Literal["audio", "nothing"] = "audio"
    """What a chunk of long text continues from. audio: the text and audio of the previous chunk."""
    frames_per_character: tuple[PositiveAmount, PositiveAmount] | None = None
    """For chunks of long text: a chunk with fewer frames than the first number, or one that has not ended by the
    second, is generated again. null: 0.015 and 0.5 seconds (training fills it in from the dataset)."""
    text_seen: TextSeen | None = None
    """Words and characters of the training texts; others cause a warning. null: unknown (filled in by training)."""
    retries: NonNegativeInt = 2
    """How often a failed chunk of long text is generated again. 0: never, so that a stream does not have to wait for
    complete chunks."""
    window_frames: PositiveInt | None = None
    """Longest training sequence in frames; longer audio is generated in overlapping windows. null: a single window."""
    stride_frames: PositiveInt | None = None
    """Frames that each window adds, less than window_frames; null: six tenths of it."""
    passes: PositiveInt | None = None
    """For a masked model: number of decoding passes; null: 1 for a refiner, else 12."""
    pass_schedule: Literal["cosine", "linear", "square", "root", "arccos"] = "cosine"
    """For a masked model: schedule of the number of codes that each pass keeps."""
    choice_temperature: Amount = 0.0
    """For a masked model: noise on the confidence that selects the codes a pass keeps; 0 keeps the most confident."""
    fine_temperature: float | tuple[float, ...] = 1.0
    """For a coarse-to-fine model: the refiner's temperature; the settings above apply to the coarse labels."""
    fine_guidance: Guidance = 1.0
    """For a coarse-to-fine model: the refiner's guidance."""
    cache: CacheConfig | None = None
    """KV cache: the name of a kind or its settings; null: lossless."""
    draft: NonNegativeInt = 0
    """Speculative decoding: steps to draft at a time and have verified by the model, which must be trained to predict
    that far ahead (lm.ahead); the samples do not change. 0: off."""
    step: Literal["auto", "eager", "compiled", "graph"] = "auto"
    """How generation steps run. eager: op by op. compiled: torch.compile, which takes tens of seconds once. graph:
    captured as a CUDA graph. auto: graph on CUDA, else eager."""

    @field_validator("temperature", "fine_temperature", "repetition_penalty", "top_k")
    @classmethod
    def _in_range(cls, value: Any, info: Any) -> Any:
        allowed, is_allowed = RANGES[info.field_name]
        for one in value if isinstance(value, tuple) else (value,):
            if not is_allowed(one):
                raise ValueError(f"must be {allowed}, found {one!r}")
        return value


def _is_temperature(value: float) -> bool:
    return value == 0 or SMALLEST_TEMPERATURE <= value <= LARGEST


RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("0, or from 1e-30 to 1e9", _is_temperature),
    "fine_temperature": ("0, or from 1e-30 to 1e9", _is_temperature),
    "repetition_penalty": ("from 1e-9 to 1e9", lambda value: 1 / LARGEST <= value <= LARGEST),
    "top_k": ("a whole number from 0 to 2^40", lambda value: 0 <= value <= 1 << 40),
}
"""Allowed values of settings that take one value or one per codebook."""
