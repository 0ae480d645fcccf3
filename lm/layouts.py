"""The named layouts of codes in steps (drawn in arrange.py), and what tells them apart: a stride and K offsets.

Frame t of codebook k stands at step t * stride + offsets[k]. Two things do not fit that: frames at the beginning that
stand one codebook a step (`flatten_first`), and coarse_first.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..tokenize.config import Config, ConfigError

Steps = Annotated[int, Field(ge=0, le=4096)]


class ParallelConfig(Config):
    """All codes of a frame in one step."""

    kind: Literal["parallel"] = "parallel"


class DelayConfig(Config):
    """Codebook k stands delays[k] steps later."""

    kind: Literal["delay"] = "delay"
    delays: tuple[Steps, ...] | None = None
    """One delay in frames for each codebook; null: 0, 1, 2, ... Stereo codes (left and right in turn) take 0, 0, 1, 1,
    ..."""
    flatten_first: Steps = 0
    """So many frames at the beginning stand one codebook a step."""


class FlatConfig(Config):
    """One code a step."""

    kind: Literal["flat"] = "flat"


class PartialFlatConfig(Config):
    """One step for each group of codebooks."""

    kind: Literal["partial_flat"] = "partial_flat"
    groups: tuple[Steps, ...]
    """The step within its frame, for each codebook: [0, 1, 1] puts codebook 0 alone and then 1 and 2 together."""
    delays: tuple[Steps, ...] | None = None
    """One more delay in frames for each codebook; null: none."""


class CoarseFirstConfig(Config):
    """Codebook 0 of all frames, then the others of all frames."""

    kind: Literal["coarse_first"] = "coarse_first"


ArrangementConfig = Annotated[
    ParallelConfig | DelayConfig | FlatConfig | PartialFlatConfig | CoarseFirstConfig, Field(discriminator="kind")
]


def spread(config: ArrangementConfig, K: int) -> tuple[int, list[int]]:
    """Steps a frame takes, and each codebook's offset in steps. ConfigError: a list that does not have K entries."""
    if isinstance(config, DelayConfig):
        return 1, _entries("delays", config.delays, K, list(range(K)))
    if isinstance(config, FlatConfig):
        return K, list(range(K))
    if isinstance(config, PartialFlatConfig):
        groups = _entries("groups", config.groups, K, [])
        if sorted(set(groups)) != list(range(max(groups) + 1)):
            raise ConfigError(f"arrangement.groups must use every number from 0 to the largest, found {groups}")
        stride = max(groups) + 1
        delays = _entries("delays", config.delays, K, [0] * K)
        return stride, [delay * stride + group for delay, group in zip(delays, groups, strict=True)]
    return 1, [0] * K


def _entries(name: str, found: tuple[int, ...] | None, K: int, default: list[int]) -> list[int]:
    if found is None:
        return default
    if len(found) != K:
        raise ConfigError(
            f"arrangement.{name} has {len(found)} entries {list(found)}, but there are {K} codebooks; give {K}"
        )
    return list(found)
