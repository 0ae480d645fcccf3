"""How a model wants to be sampled; stored with it, and overridden by whoever calls generate."""

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
from .kv_cache.registry import CacheConfig

LARGEST = 1e9
"""Of the numbers that logits are multiplied with or divided by: no product overflows."""
SMALLEST_TEMPERATURE = 1e-30
"""Above 0."""

Amount = Annotated[float, Field(ge=0, le=LARGEST)]
PositiveAmount = Annotated[float, Field(gt=0, le=LARGEST)]


class TwoConditions(Config):
    """Guidance by two conditions (MusicGen-Style, arXiv:2407.12563): l_null + s (l_kept + beta (l_all - l_kept) -
    l_null), with l_kept the logits given the kept conditions alone. It runs three rows for each sample."""

    keep: tuple[str, ...] = Field(min_length=1)
    """Kinds of the conditions that are kept, for instance [codes]; beta strengthens the others."""
    beta: Amount = 1.0
    """1: as with one condition."""


class GuidanceConfig(Config):
    """What every kind has. The scale is s in l_null + s (l_condition - l_null): 1 is the condition alone."""

    scale: Amount | tuple[Amount, ...]
    """One value, or one for each codebook."""
    filter_top_k: NonNegativeInt = 0
    """Above 0 (Dia): the guided logits only choose the k likeliest ids, their probabilities are those of the condition
    alone; 0: the guided logits are drawn from."""
    two: TwoConditions | None = None


class ConstantGuidance(GuidanceConfig):
    """The same scale at every step."""

    kind: Literal["constant"] = "constant"


class IntervalGuidance(GuidanceConfig):
    """The scale from `start` to `stop` (LlamaGen: until stop), 1 outside; in shares of the steps, step / steps."""

    kind: Literal["interval"] = "interval"
    start: float = Field(default=0.0, ge=0, le=1)
    stop: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> IntervalGuidance:
        if self.stop <= self.start:
            raise ValueError(f"stop {self.stop} must be above start {self.start}")
        return self


class LinearGuidance(GuidanceConfig):
    """first + (scale - first) p with p = step / steps. VAR's number t is scale = 1 + t."""

    kind: Literal["linear"] = "linear"
    first: Amount = 1.0


class CosineGuidance(GuidanceConfig):
    """1 + (scale - 1) (1 - cos(pi p^power)) / 2 with p = step / steps (RAR). MaskBit's number s is scale = 1 + s."""

    kind: Literal["cosine"] = "cosine"
    power: PositiveAmount = 1.0
    """Above 1 the scale stays low for longer."""


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
"""A number (or one for each codebook) is a constant scale."""


class GenerationConfig(Config):
    """Sampling settings. Where a tuple is given it has one value for each codebook."""

    temperature: float | tuple[float, ...] = 1.0
    """Divides the logits; 0 takes the likeliest id. 0, or from 1e-30 to 1e9."""
    top_k: int | tuple[int, ...] = 0
    """Keep the k likeliest ids; 0 keeps all. At most 2^40."""
    top_p: float | tuple[float, ...] = 1.0
    """Keep the likeliest ids that together have this probability; 1 keeps all."""
    min_p: float | tuple[float, ...] = 0.0
    """Drop ids less likely than this share of the likeliest; 0 drops none."""
    repetition_penalty: float | tuple[float, ...] = 1.0
    """Makes codes that were drawn lately less likely, in the same row and codebook; 1: off. From 1e-9 to 1e9."""
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
    end_rule: Literal["drawn", "likeliest"] = "drawn"
    """likeliest (Dia): the end is drawn only where no other id is likelier."""
    guidance: Guidance = 1.0
    """Classifier-free guidance: 1 none, above it the condition is followed more closely. A number, one for each
    codebook, or a schedule like {kind: linear, scale: 3.0}."""
    max_frames: PositiveInt | None = None
    """Frames at most; null: the whole grid of a picture."""
    min_frames: NonNegativeInt = 1
    """No end before this many frames; of a text, where frames_per_character is known, before the fewest it takes."""
    text_characters: PositiveInt | None = None
    """Longest text the model has learned to say, in characters as it reads them; longer text is said in pieces. null:
    unknown, text is never split (training fills it in from its items)."""
    split: Literal["auto", "off"] = "auto"
    """off: a text is said at once, however long."""
    carry: Literal["audio", "nothing"] = "audio"
    """What a piece of a long text goes on from. audio: the piece before, its text and its sound."""
    frames_per_character: tuple[PositiveAmount, PositiveAmount] | None = None
    """Of the pieces of a long text: one with fewer frames is made again, and so is one that has not ended by the
    second number. null: 0.015 and 0.5 seconds (training fills it in from its items)."""
    text_seen: TextSeen | None = None
    """What the texts of the training data were made of: words and characters beside them are warned of. null: unknown
    (training fills it in from its items)."""
    retries: NonNegativeInt = 2
    """How often a piece of a long text that went wrong is made again. 0: never, and a stream need not wait for its
    pieces to be whole."""
    window_frames: PositiveInt | None = None
    """Frames the model has learned to make at once; longer sound is made in windows that overlap. null: it goes on."""
    stride_frames: PositiveInt | None = None
    """Frames that a window adds, less than window_frames; null: six tenths of them."""
    passes: PositiveInt | None = None
    """Of a masked model: passes in which the codes are filled in; null: 1 for a refiner, else 12."""
    pass_schedule: Literal["cosine", "linear", "square", "root", "arccos"] = "cosine"
    """Of a masked model: how many codes each pass keeps."""
    choice_temperature: Amount = 0.0
    """Of a masked model: noise on the choice of the codes that a pass keeps; 0 keeps the surest."""
    fine_temperature: float | tuple[float, ...] = 1.0
    """Of a coarse-to-fine model: the refiner's temperature; the others above are of the coarse labels."""
    fine_guidance: Guidance = 1.0
    """Of a coarse-to-fine model: the refiner's guidance."""
    cache: CacheConfig | None = None
    """How keys and values are remembered, a kind's name or its settings; null: exactly."""
    draft: NonNegativeInt = 0
    """Steps to guess at a time and have checked by the model, which must have been trained to look so far ahead
    (lm.ahead); the samples stay the same. 0: none."""
    step: Literal["auto", "eager", "compiled", "graph"] = "auto"
    """How the steps of a generation are run. eager: operation by operation. compiled: by torch.compile, which takes
    tens of seconds once. graph: recorded as a CUDA graph. auto: graph on CUDA, else eager."""

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
"""Settings that are one value or one for each codebook: what each value may be."""
