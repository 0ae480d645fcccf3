"""The kinds of KV cache, chosen by name or by a mapping with settings.

cache: int8
cache: {kind: ring, window: 500}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...configs.schema import Config, check_config
from .base import Cache, CacheShape, KVCache
from .config import CacheChoice, CacheConfig, RingCacheConfig, StaticCacheConfig
from .evicting import EvictingCache
from .quantized import QuantizedCache
from .sliding_window import RingCache

CACHES: dict[str, Callable[[Any, CacheShape], Cache]] = {
    "static": lambda config, shape: KVCache(shape),
    "ring": RingCache,
    "int8": QuantizedCache,
    "int4": QuantizedCache,
    "evict": EvictingCache,
}
"""Built as CACHES[kind](config, shape)."""


class _Chosen(Config):
    cache: CacheConfig = StaticCacheConfig()


def read_cache(choice: CacheChoice | None, window: int | None = None) -> CacheConfig:
    """Parse a choice into a config; None: ring if the model has a window, else static.

    Raises:
        ConfigError: names the setting, the value found and the nearest known one.
    """
    if choice is None:
        return StaticCacheConfig() if window is None else RingCacheConfig()
    plain = choice.model_dump(mode="json") if isinstance(choice, Config) else choice
    return check_config({"cache": plain}, _Chosen, "generate").cache


def make_cache(choice: CacheChoice | None, shape: CacheShape) -> Cache:
    """Build an empty cache; errors as `read_cache`, and ValueError if the kind does not fit the model."""
    config = read_cache(choice, shape.window)
    return CACHES[config.kind](config, shape)
