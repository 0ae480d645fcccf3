"""Kinds of classifier-free guidance: the scale as a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, Tag, model_validator

from ..configs.schema import Config

LARGEST = 1e9
"""Largest factor or divisor of logits: no product overflows."""
Amount = Annotated[float, Field(ge=0, le=LARGEST)]
PositiveAmount = Annotated[float, Field(gt=0, le=LARGEST)]


class TwoConditions(Config):
    """Guidance by two conditions (MusicGen-Style, arXiv:2407.12563): l_null + s (l_kept + beta (l_all - l_kept) -
    l_null), where l_kept are the logits given the kept conditions only. It runs three rows per sample."""

    keep: tuple[str, ...] = Field(min_length=1)
    """Kinds of the kept conditions, for instance [codes]; beta strengthens the others."""
    beta: Amount = 1.0
    """Strength of the conditions that are not kept; 1: equivalent to guidance by all conditions together."""


class GuidanceConfig(Config):
    """Settings of every kind of guidance. The scale is s in l_null + s (l_condition - l_null): 1 is no guidance."""

    scale: Amount | tuple[Amount, ...]
    """Guidance scale: one value, or one per codebook."""
    filter_top_k: NonNegativeInt = 0
    """Above 0 (Dia): the guided logits only select the k likeliest ids, and the conditional logits give their
    probabilities; 0: sample from the guided logits."""
    two: TwoConditions | None = None
    """Guidance by two conditions, with separate strengths; null: all conditions together."""


class ConstantGuidance(GuidanceConfig):
    """The same scale at every step."""

    kind: Literal["constant"] = "constant"


class IntervalGuidance(GuidanceConfig):
    """The scale from `start` to `stop` (LlamaGen: until stop), 1 outside; as fractions of the steps, step / steps."""

    kind: Literal["interval"] = "interval"
    start: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the steps at which the scale begins to apply."""
    stop: float = Field(default=1.0, ge=0, le=1)
    """Fraction of the steps at which the scale stops applying; must be above `start`."""

    @model_validator(mode="after")
    def _check(self) -> IntervalGuidance:
        if self.stop <= self.start:
            raise ValueError(f"stop {self.stop} must be above start {self.start}")
        return self


class LinearGuidance(GuidanceConfig):
    """first + (scale - first) p with p = step / steps. VAR's parameter t is scale = 1 + t."""

    kind: Literal["linear"] = "linear"
    first: Amount = 1.0
    """Scale at the first step."""


class CosineGuidance(GuidanceConfig):
    """1 + (scale - 1) (1 - cos(pi p^power)) / 2 with p = step / steps (RAR). MaskBit's parameter s is scale = 1 + s."""

    kind: Literal["cosine"] = "cosine"
    power: PositiveAmount = 1.0
    """Exponent of the progress p: above 1, the scale stays low for longer."""


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
