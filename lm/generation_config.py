"""Sampling and decoding settings: the only place where a setting's name, type, range, default and help are declared.

A model directory holds its defaults as a `GenerationConfig`. Derived from it:

    keyword arguments of generate      generate/requests/keyword_types.py
    options of tessera generate, ...   cli/setting_options.py
    page "Generation settings"         docs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PositiveInt, Strict
from pydantic_core import core_schema

from ..configs.schema import Config
from ..tokenize.text.coverage import TextSeen
from .guidance_config import LARGEST, Amount, Guidance, PositiveAmount
from .kv_cache.config import CacheConfig, plain_choice

MAX_LOOK_BACK = 4096
"""Largest number of frames that a rule may look back."""
MAX_FRAMES = 10_000_000
"""55 hours of audio at 50 frames per second."""


@dataclass(frozen=True)
class Range:
    """The range of a setting, checked for each codebook."""

    allowed: str
    """For messages: "must be ..."."""
    includes: Callable[[Any], bool]

    def check(self, value: Any) -> Any:
        """The value; ValueError if it, or the value of a codebook, is out of range."""
        for one in value if isinstance(value, tuple) else (value,):
            if not self.includes(one):
                raise ValueError(f"must be {self.allowed}, found {one!r}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))


Numbers = float | Annotated[tuple[float, ...], Strict(False)]
"""One value, or one per codebook."""
WholeNumbers = int | Annotated[tuple[int, ...], Strict(False)]
"""One whole number, or one per codebook."""
Temperature = Annotated[
    Numbers, Range("0, or from 1e-30 to 1e9", lambda value: value == 0 or 1e-30 <= value <= LARGEST)
]
Share = Annotated[Numbers, Range("above 0 and at most 1", lambda value: 0 < value <= 1)]


class GenerationConfig(Config):
    """Sampling and decoding settings. A tuple has one value per codebook."""

    model_config = ConfigDict(use_attribute_docstrings=True)  # the help of the command line's options

    of_models: ClassVar = ("text_characters", "frames_per_character", "text_seen", "default_label")
    """Settings that a model has: not options of the command line."""

    temperature: Temperature = 1.0
    """Divides the logits; 0 is greedy decoding. 0, or from 1e-30 to 1e9."""
    top_k: Annotated[WholeNumbers, Range("a whole number from 0 to 2^40", lambda value: 0 <= value <= 1 << 40)] = 0
    """Keep the k likeliest ids; 0 keeps all. At most 2^40."""
    top_p: Share = 1.0
    """Keep the likeliest ids whose total probability reaches this value; 1 keeps all."""
    min_p: Annotated[Numbers, Range("from 0 to 1", lambda value: 0 <= value <= 1)] = 0.0
    """Drop ids whose probability is below this fraction of the largest; 0 drops none."""
    repetition_penalty: Annotated[Numbers, Range("from 1e-9 to 1e9", lambda value: 1 / LARGEST <= value <= LARGEST)] = (
        1.0
    )
    """Penalize recently sampled codes, per row and codebook: their positive logits are divided by it, their negative
    ones multiplied; 1: off. From 1e-9 to 1e9."""
    repetition_window: Annotated[
        WholeNumbers,
        Range(f"a whole number of frames from 1 to {MAX_LOOK_BACK}", lambda value: 1 <= value <= MAX_LOOK_BACK),
    ] = 16
    """Number of recent frames that the penalty considers."""
    ras: Annotated[
        WholeNumbers,
        Range(f"a whole number of frames from 0 to {MAX_LOOK_BACK}", lambda value: 0 <= value <= MAX_LOOK_BACK),
    ] = 0
    """Repetition-aware sampling: window in frames, typically 10 (VALL-E 2); 0: off."""
    ras_tau: Share = 0.1
    """A code that makes up at least this share of the last `ras` codes is resampled without the filters above."""
    end_bias: Annotated[float, Range("above -1e9 and below 1e9", lambda value: abs(value) < LARGEST)] = 0.0
    """Added to the logit of the end token: above 0 sequences end sooner, below 0 later."""
    max_silence: float = Field(default=0.0, ge=0, le=600)
    """Longest continuous silence in seconds; 0: no limit."""
    silence_codes: Annotated[tuple[int, ...], Strict(False)] = ()
    """Codes of codebook 0 that count as silence; empty: those that the tokenizer assigns to digital silence."""
    end_rule: Literal["drawn", "likeliest"] = "drawn"
    """drawn: the end token is sampled like any id. likeliest (Dia): only if no other id is likelier."""
    guidance: Guidance = 1.0
    """Classifier-free guidance: 1 is off, larger values follow the condition more closely. A number, one per codebook,
    or a schedule, for instance {kind: linear, scale: 3.0}."""
    max_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    """Maximum number of frames; null: the whole grid of an image."""
    min_frames: Annotated[int, Field(ge=0, le=MAX_FRAMES)] = 1
    """Minimum number of frames; for text with known frames_per_character, at least the fewest that it takes."""
    text_characters: PositiveInt | None = None
    """Text length the model was trained on, in characters as it reads them; longer text is split into chunks. null:
    unknown, text is never split (training fills it in from the dataset)."""
    split: Literal["auto", "off"] = "auto"
    """auto: text longer than the model was trained on is split into chunks. off: text is never split."""
    carry: Literal["audio", "nothing"] = "audio"
    """What a chunk of long text continues from. audio: the text and audio of the previous chunk. nothing: it starts
    anew."""
    frames_per_character: tuple[PositiveAmount, PositiveAmount] | None = None
    """For chunks of long text: a chunk with fewer frames than the first number, or one that has not ended by the
    second, is generated again. null: 0.015 and 0.5 seconds (training fills it in from the dataset)."""
    text_seen: TextSeen | None = None
    """Words and characters of the training texts; others cause a warning. null: unknown (filled in by training)."""
    retries: Annotated[int, Field(ge=0, le=1000)] = 2
    """How often a failed chunk of long text is generated again. 0: never, so that a stream does not have to wait for
    complete chunks."""
    window_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    """Longest training sequence in frames; longer audio is generated in overlapping windows. null: a single window."""
    stride_frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    """Frames that each window adds, less than window_frames; null: six tenths of it."""
    passes: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """For a masked model: number of decoding passes; null: 1 for a refiner, else 12."""
    pass_schedule: Literal["cosine", "linear", "square", "root", "arccos"] = "cosine"
    """For a masked model: schedule of the number of codes that each pass keeps."""
    choice_temperature: Amount = 0.0
    """For a masked model: Gumbel noise on the confidence that selects the codes a pass keeps; it falls to 0 in the last
    pass. 0 keeps the most confident."""
    fine_temperature: Temperature = 1.0
    """For a coarse-to-fine model: the refiner's temperature; the settings above apply to the coarse labels."""
    fine_guidance: Guidance = 1.0
    """For a coarse-to-fine model: the refiner's guidance."""
    cache: Annotated[CacheConfig | None, BeforeValidator(plain_choice)] = None
    """KV cache: static, ring, int8, int4 or evict, or settings such as {kind: ring, window: 500}; null: lossless."""
    default_label: str | None = None
    """For a model of texts with labels: the label of a call that gives none; null: none."""
    speed: Annotated[float, Range("from 0.5 to 2", lambda value: 0.5 <= value <= 2)] = 1.0
    """For a model with an aligned text: rate of speech relative to the model's own, from 0.5 to 2. Others than 1
    take two passes."""
    advance_temperature: Annotated[float, Range("from 0.1 to 10", lambda value: 0.1 <= value <= 10)] = 1.0
    """For a model with an aligned text: temperature of the durations, from 0.1 to 10; below 1 they vary less."""
    draft: Annotated[int, Field(ge=0, le=1024)] = 0
    """Speculative decoding: steps to draft at a time and have verified by the model, which must be trained to predict
    that far ahead (lm.ahead); the samples do not change. 0: off."""
    step: Literal["auto", "eager", "compiled", "graph"] = "auto"
    """How generation steps run. eager: op by op. compiled: torch.compile, which takes tens of seconds once. graph:
    captured as a CUDA graph. auto: graph on CUDA, else eager."""

    def for_refiner(self) -> GenerationConfig:
        """The settings of the second stage of a coarse-to-fine model."""
        return GenerationConfig(
            temperature=self.fine_temperature,
            guidance=self.fine_guidance,
            passes=self.passes,
            pass_schedule=self.pass_schedule,
            choice_temperature=self.choice_temperature,
        )


ORDERED = ("repetition_penalty", "ras", "end_bias", "end_rule", "max_silence", "silence_codes")
"""Settings that depend on earlier codes, and so on codes being sampled in order."""


def check_unordered(config: GenerationConfig, kind: str) -> None:
    """Raise ValueError for settings that depend on earlier codes; a `kind` model does not sample codes in order."""
    for name in ORDERED:
        value = getattr(config, name)
        if value != GenerationConfig.model_fields[name].default:
            raise ValueError(f"{name} is {value}, but a {kind} model does not fill codes in order; leave it out")
