"""The named codebook patterns (drawn in pattern.py), each reduced to three numbers per codebook.

Frame t of T of codebook k is at step spans[k] * T + strides[k] * t + offsets[k]. Two cases need extra steps listed one
by one: initial frames with one codebook per step (`flatten_first`), and the beginning of `unrolled`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field

from ...configs.schema import Config, ConfigError

Steps = Annotated[int, Field(ge=0, le=4096)]


class ParallelConfig(Config):
    """All codes of a frame in one step."""

    kind: Literal["parallel"] = "parallel"


class DelayConfig(Config):
    """Delay codebook k by delays[k] steps."""

    kind: Literal["delay"] = "delay"
    delays: tuple[Steps, ...] | None = None
    """Delay in frames per codebook; null: 0, 1, 2, ... Interleaved stereo codes (left, right) use 0, 0, 1, 1, ..."""
    flatten_first: Steps = 0
    """Number of initial frames with one codebook per step."""


class FlatConfig(Config):
    """One code per step."""

    kind: Literal["flat"] = "flat"


class PartialFlatConfig(Config):
    """One step per group of codebooks. With delays it differs from audiocraft's UnrolledPatternProvider (kind
    `unrolled`): here a group keeps its place within the frame's steps, and no step is skipped at the beginning."""

    kind: Literal["partial_flat"] = "partial_flat"
    groups: tuple[Steps, ...]
    """Step within the frame, per codebook: [0, 1, 1] puts codebook 0 alone and then 1 and 2 together."""
    delays: tuple[Steps, ...] | None = None
    """Additional delay in frames per codebook; null: none."""


class UnrolledConfig(Config):
    """audiocraft's UnrolledPatternProvider: one step per group of codebooks, later groups delayed by frames. Within a
    frame's steps the groups of older frames come first, and a group takes no step before its first frame."""

    kind: Literal["unrolled"] = "unrolled"
    flattening: tuple[Steps, ...] | None = None
    """Group of each codebook, nondecreasing: [0, 1, 1] puts codebook 0 alone, then 1 and 2 together; null: one group
    per codebook."""
    delays: tuple[Steps, ...] | None = None
    """Delay in frames per codebook, nondecreasing, the same within a group; null: none."""


class GroupedConfig(Config):
    """Groups of codebooks in sequence: all frames of the first group, then all frames of the next."""

    kind: Literal["grouped"] = "grouped"
    sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...]
    """Number of codebooks in each group: [1, 2] is codebook 0, then 1 and 2."""
    inside: Literal["flat", "parallel"] = "flat"
    """flat: one code per step within a group. parallel: a step holds all codes of a group's frame."""
    delays: tuple[Steps, ...] | None = None
    """Additional delay in frames per codebook within its group; null: none."""


class CoarseFirstConfig(Config):
    """Codebook 0 of all frames, then the others of all frames: `grouped` with two groups, parallel inside."""

    kind: Literal["coarse_first"] = "coarse_first"


ArrangementConfig = Annotated[
    ParallelConfig | DelayConfig | FlatConfig | PartialFlatConfig | UnrolledConfig | GroupedConfig | CoarseFirstConfig,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class AffineLayout:
    """Frame t of T of codebook k is at step spans[k] * T + strides[k] * t + offsets[k]."""

    spans: list[int]
    """If not all 0, positions depend on the number of frames."""
    strides: list[int]
    offsets: list[int]
    beginning: list[list[int]] = field(default_factory=list)
    """Initial steps: for each the frame of each codebook, or -1. Frames listed here appear nowhere else."""


def layout_of(config: ArrangementConfig, K: int) -> AffineLayout:
    """The layout of a config for K codebooks. ConfigError: a list does not fit K codebooks."""
    if isinstance(config, CoarseFirstConfig):
        return _grouped([1, K - 1] if K > 1 else [1], "parallel", [0] * K)
    if isinstance(config, GroupedConfig):
        if sum(config.sizes) != K:
            raise ConfigError(
                f"arrangement.sizes {list(config.sizes)} add up to {sum(config.sizes)}, but there are {K} codebooks; "
                f"give sizes that add up to {K}"
            )
        return _grouped(list(config.sizes), config.inside, _entries("delays", config.delays, K, [0] * K))
    if isinstance(config, DelayConfig):
        return AffineLayout([0] * K, [1] * K, _entries("delays", config.delays, K, list(range(K))))
    if isinstance(config, FlatConfig):
        return AffineLayout([0] * K, [K] * K, list(range(K)))
    if isinstance(config, PartialFlatConfig):
        groups = _entries("groups", config.groups, K, [])
        if sorted(set(groups)) != list(range(max(groups) + 1)):
            raise ConfigError(f"arrangement.groups must use every number from 0 to the largest, found {groups}")
        stride = max(groups) + 1
        delays = _entries("delays", config.delays, K, [0] * K)
        offsets = [delay * stride + group for delay, group in zip(delays, groups, strict=True)]
        return AffineLayout([0] * K, [stride] * K, offsets)
    if isinstance(config, UnrolledConfig):
        return _unrolled(
            _entries("flattening", config.flattening, K, list(range(K))), _entries("delays", config.delays, K, [0] * K)
        )
    return AffineLayout([0] * K, [1] * K, [0] * K)


def _unrolled(flattening: list[int], delays: list[int]) -> AffineLayout:
    groups = sorted(set(flattening))
    if groups != list(range(len(groups))) or flattening != sorted(flattening):
        raise ConfigError(
            f"arrangement.flattening must begin with 0 and go up by at most 1, found {flattening}; reorder it"
        )
    if delays != sorted(delays) or len({*zip(flattening, delays, strict=True)}) > len(groups):
        raise ConfigError(
            f"arrangement.delays must not fall and be the same for codebooks of a step, found {delays} with flattening "
            f"{flattening}"
        )
    delay_of = dict(zip(flattening, delays, strict=True))
    order = sorted(groups, key=lambda group: (-delay_of[group], group))  # groups of older frames first
    longest, beginning = max(delays), []
    for position in range(longest):  # while not all groups have begun
        for group in order:
            if delay_of[group] <= position:
                frame = position - delay_of[group]
                beginning.append([frame if own == group else -1 for own in flattening])
    places = [order.index(group) + (delay_of[group] - longest) * len(groups) for group in flattening]
    K = len(flattening)
    return AffineLayout([0] * K, [len(groups)] * K, [len(beginning) + place for place in places], beginning)


def _grouped(sizes: list[int], inside: str, delays: list[int]) -> AffineLayout:
    layout = AffineLayout([], [], [])
    span = start = 0  # a group begins at step span * T + start
    for size, end in zip(sizes, accumulate(sizes), strict=True):
        stride = size if inside == "flat" else 1
        places = [delay * stride + place % stride for place, delay in enumerate(delays[end - size : end])]
        layout.spans.extend([span] * size)
        layout.strides.extend([stride] * size)
        layout.offsets.extend(start + place for place in places)
        span, start = span + stride, start + max(places) + 1 - stride
    return layout


def _entries(name: str, found: tuple[int, ...] | None, K: int, default: list[int]) -> list[int]:
    if found is None:
        return default
    if len(found) != K:
        raise ConfigError(
            f"arrangement.{name} has {len(found)} entries {list(found)}, but there are {K} codebooks; give {K}"
        )
    return list(found)
