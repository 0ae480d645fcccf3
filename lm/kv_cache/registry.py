"""The kinds of KV cache, chosen by name or by a mapping with settings.

cache: int8
cache: {kind: ring, window: 500}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ...configs.schema import Config, check_config, parse_yaml
from .base import Cache, CacheShape, KVCache
from .evicting import EvictCacheConfig, EvictingCache
from .quantized import Int4CacheConfig, Int8CacheConfig, QuantizedCache
from .sliding_window import RingCache, RingCacheConfig


class StaticCacheConfig(Config):
    """Keys and values of all positions, in the model's precision."""

    kind: Literal["static"] = "static"


def plain_choice(choice: Any) -> Any:
    """A choice as the plain mapping of config files; ConfigError if a string is not valid YAML."""
    if isinstance(choice, str):
        choice = parse_yaml(choice, "cache")
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

CACHES: dict[str, Callable[[Any, CacheShape], Cache]] = {
    "static": lambda config, shape: KVCache.of(shape),
    "ring": RingCache,
    "int8": QuantizedCache,
    "int4": QuantizedCache,
    "evict": EvictingCache,
}
"""Built as CACHES[kind](config, shape)."""

CacheChoice = str | Mapping[str, Any] | CacheConfig
"""A kind's name, a mapping, YAML of either, or a config."""


class _Chosen(Config):
    cache: CacheConfig = StaticCacheConfig()


def read_cache(choice: CacheChoice | None, window: int | None = None) -> CacheConfig:
    """Parse a choice into a config; None: ring if the model has a window, else static.

    Raises:
        ConfigError: names the setting, the value found and the nearest known one.
    """
    if choice is None:
        return StaticCacheConfig() if window is None else RingCacheConfig()
    return check_config({"cache": plain_choice(choice)}, _Chosen, "generate").cache


def make_cache(choice: CacheChoice | None, shape: CacheShape) -> Cache:
    """Build an empty cache; errors as `read_cache`, and ValueError if the kind does not fit the model."""
    config = read_cache(choice, shape.window)
    return CACHES[config.kind](config, shape)
