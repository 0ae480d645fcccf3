"""The settings of each kind of KV cache. Imports no torch: the command line derives its options from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from ...configs.schema import Config, parse_yaml


class StaticCacheConfig(Config):
    """Keys and values of all positions, in the model's precision."""

    kind: Literal["static"] = "static"


class RingCacheConfig(Config):
    """A window of the last steps, after the conditions."""

    kind: Literal["ring"] = "ring"
    window: PositiveInt | None = None
    """Window in steps, the newest included; null: the model's training window (lm.window)."""
    sinks: NonNegativeInt = 0
    """First steps kept besides the conditions (attention sinks); for models trained without a window."""


GroupSize = Annotated[int, Field(ge=2, le=256, multiple_of=2)]


class Int8CacheConfig(Config):
    """8 bits per number."""

    kind: Literal["int8"] = "int8"
    group: GroupSize = 32
    """Steps whose keys share one scale per channel, an even number."""
    recent: NonNegativeInt = 16
    """Minimum number of steps in full precision."""
    outliers: int = Field(default=0, ge=0, le=8)
    """Numbers of each vector kept in float16."""


class Int4CacheConfig(Config):
    """4 bits per number, two per byte."""

    kind: Literal["int4"] = "int4"
    group: GroupSize = 32
    """Steps whose keys share one scale per channel, an even number."""
    recent: NonNegativeInt = 32
    """Minimum number of steps in full precision."""
    outliers: int = Field(default=0, ge=0, le=8)
    """Numbers of each vector kept in float16."""


PolicyName = Literal["key_norm"]


class EvictCacheConfig(Config):
    """Keeps a fixed number of steps."""

    kind: Literal["evict"] = "evict"
    budget: PositiveInt = 256
    """Steps kept besides the conditions."""
    recent: NonNegativeInt = 32
    """Most recent steps, always kept; part of the budget."""
    policy: PolicyName = "key_norm"
    """Which steps are kept: key_norm, those whose keys have a low L2 norm."""

    @model_validator(mode="after")
    def _check(self) -> EvictCacheConfig:
        if self.recent >= self.budget:
            raise ValueError(f"recent {self.recent} must be below budget {self.budget}")
        return self


def plain_choice(choice: Any) -> Any:
    """A choice as the plain mapping of config files; ConfigError if a string is not valid YAML."""
    if isinstance(choice, str):
        choice = parse_yaml(choice)
    if isinstance(choice, str):
        return {"kind": choice}
    return choice.model_dump(mode="json") if isinstance(choice, Config) else choice


CacheConfig = Annotated[
    Annotated[
        StaticCacheConfig | RingCacheConfig | Int8CacheConfig | Int4CacheConfig | EvictCacheConfig,
        Field(discriminator="kind"),
    ],
    BeforeValidator(plain_choice),
]


CacheChoice = str | Mapping[str, Any] | CacheConfig
"""A kind's name, a mapping, YAML of either, or a config."""
