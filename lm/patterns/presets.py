"""Codebook patterns of other projects by name: the pattern, the special ids, and whether sequences end by themselves.

    arrangement: {kind: preset, name: dia}     in the YAML of a model; `LMConfig.explicit` expands it
    PRESETS["dia"](9)                          in Python: (arrangement, specials, variable_length) for 9 codebooks

A preset also sets `specials` and `variable_length`; a config with other values is rejected. In all presets the model's
first column of `start` (see pattern.py) counts as the first column of the project.

No preset reproduces the following, because it does not concern where ids are placed:

- audiocraft and Moshi train on the first T steps (and the leading column) only, so the last delay_k frames of codebook
  k have no loss. Here every code has one.
- Higgs, Parler, Zonos and Dia also predict the ends of codebooks 1, 2, ... Here those follow from codebook 0's, as they
  do in the generation of Higgs, Zonos and Dia, so their heads have no output for it. Parler's only keeps their
  order; as it drops frames that are not whole, the number of frames is the same.
- Ids that a project's tables contain but never use (Parler's rows up to 1087, Dia's 1027) have no row here.

Sources: audiocraft 896ec7c (codebooks_patterns.py), transformers 5.x (modeling_musicgen.py), higgs-audio f04f5df,
MOSS-TTS 58b20a0, Zonos bc40d98, Dia 876125e, parler-tts d108732, Moshi e6a55d2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator

from ...configs.schema import Config, ConfigError, nearest_name
from .layouts import (
    ArrangementConfig,
    CoarseFirstConfig,
    DelayConfig,
    FlatConfig,
    GroupedConfig,
    ParallelConfig,
    PartialFlatConfig,
)
from .pattern import SpecialsConfig


class Resolved(NamedTuple):
    """A preset for a number of codebooks."""

    arrangement: ArrangementConfig
    specials: SpecialsConfig
    variable_length: bool


@dataclass(frozen=True)
class Preset:
    """Definition of a preset."""

    arrange: Callable[[int], ArrangementConfig]
    """Maps the number of codebooks to a config; ConfigError if it does not fit."""
    specials: SpecialsConfig
    variable_length: bool

    def __call__(self, num_codebooks: int) -> Resolved:
        return Resolved(self.arrange(num_codebooks), self.specials, self.variable_length)


def delays(make: Callable[[int], list[int]]) -> Callable[[int], DelayConfig]:
    """A pattern with the delays that `make` gives for K codebooks."""
    return lambda K: DelayConfig(delays=tuple(make(K)))


def one_each(K: int) -> list[int]:
    """Delays 0, 1, 2, ..."""
    return list(range(K))


def first_alone(K: int) -> list[int]:
    """0 for codebook 0 and 1 for all others."""
    return [min(k, 1) for k in range(K)]


def in_pairs(K: int) -> list[int]:
    """0, 0, 1, 1, 2, 2, ...; ConfigError for an odd K."""
    if K % 2:
        raise ConfigError(f"left and right codebooks alternate, so their number must be even, found {K}")
    return [k // 2 for k in range(K)]


def per_timestep(K: int) -> PartialFlatConfig:
    """Frame t of channel c of codebook j of a channel at step 2 t + c + j."""
    places = [k // 2 + k % 2 for k in range(len(in_pairs(K)))]
    return PartialFlatConfig(groups=tuple(p % 2 for p in places), delays=tuple(p // 2 for p in places))


def pairs(K: int) -> GroupedConfig:
    """Groups of two codebooks, each flat; if K is odd, the last one is alone."""
    return GroupedConfig(sizes=tuple(min(2, K - k) for k in range(0, K, 2)))


def text_and_two_voices(K: int) -> list[int]:
    """[0, 0, 1 .. 1, 0, 1 .. 1] for 1 + 2 Q codebooks: text, then Moshi's stream and the user's."""
    if K % 2 == 0:
        raise ConfigError(
            "one text codebook and two equal streams need an odd number of codebooks, found "
            f"{K}; for a single stream use preset moshi-stream"
        )
    return [0, *first_alone(K // 2), *first_alone(K // 2)]


ONE_SPECIAL = SpecialsConfig(start=0, pad=0)
"""audiocraft's single special id, V, before, after and between codes."""

PRESETS: dict[str, Preset] = {
    # audiocraft's patterns
    "parallel": Preset(lambda K: ParallelConfig(), ONE_SPECIAL, False),
    "musicgen": Preset(delays(one_each), ONE_SPECIAL, False),
    "partial-delay": Preset(delays(first_alone), ONE_SPECIAL, False),
    "delay-flatten-first": Preset(
        lambda K: DelayConfig(delays=tuple(one_each(K)), flatten_first=1), ONE_SPECIAL, False
    ),
    "flat": Preset(lambda K: FlatConfig(), ONE_SPECIAL, False),
    "partial-flat": Preset(lambda K: PartialFlatConfig(groups=tuple(first_alone(K))), ONE_SPECIAL, False),
    "coarse-first": Preset(lambda K: CoarseFirstConfig(), ONE_SPECIAL, False),
    "musiclm": Preset(pairs, ONE_SPECIAL, False),
    "musicgen-stereo": Preset(delays(in_pairs), ONE_SPECIAL, False),
    "musicgen-stereo-per-timestep": Preset(per_timestep, ONE_SPECIAL, False),
    # projects whose sequences end by themselves
    "higgs-v2": Preset(delays(one_each), SpecialsConfig(start=0, end=1, pad=1, after="end"), True),
    "zonos": Preset(delays(one_each), SpecialsConfig(end=0, start=1, pad=1), True),
    "dia": Preset(delays(lambda K: [k + 7 if k else 0 for k in range(K)]), SpecialsConfig(end=0, pad=1, start=2), True),
    "parler": Preset(delays(one_each), SpecialsConfig(end=0, start=1, pad=0, after="end"), True),
    # projects in which text determines the end
    "moss-tts-delay": Preset(delays(one_each), SpecialsConfig(start=0, pad=0, before="pad"), False),
    "moshi": Preset(delays(text_and_two_voices), ONE_SPECIAL, False),
    "moshi-stream": Preset(delays(first_alone), ONE_SPECIAL, False),
}
"""By name; each is called with the number of codebooks.

musicgen         delays 0 .. K - 1; with V = 2048 the special id is 2048. transformers' `max_length` is T + K.
musicgen-stereo  codes [B, 2 Q, T], left and right interleaved, 1_L 1_R 2_L 2_R ...; both of a level in one step.
musicgen-stereo-per-timestep
                 the same codes, left and right of a level one step apart, in 2 T steps and more. audiocraft interleaves
                 the channels in time instead, [B, Q, 2 T] at twice the frame rate, with preset musicgen: the same
                 codes in the same steps, but one table for both channels.
musiclm          MusicLMPattern(group_by=2); for other groups use kind grouped.
coarse-first     VALL-E's order; CoarseFirstPattern with delays is kind grouped, sizes [1, K - 1], inside parallel.
higgs-v2         1024 begins a stream, 1025 ends it and pads after it.
zonos            1025 (masked) before and after, 1024 ends. Its codebook k is delayed by k + 1 because it has no leading
                 column; here that column is the first of those steps.
dia              1026 begins, 1024 ends, 1025 pads; delays 0, 8, 9, ..., 15 of 9 codebooks.
parler           1025 begins, 1024 ends and pads after it.
moss-tts-delay   1024 fills all cells without a code, and is never sampled. A text channel, which the model here does
                 not have, ends the sequence: it emits `delay_slot` K times, then `audio_end`.
moshi            text, 8 codebooks of Moshi, 8 of the user: 17. Its id -1, read as a zero vector, has no counterpart.
                 The text determines the end.
moshi-stream     one such stream: delays 0, 1, 1, ...
"""


class PresetConfig(Config):
    """A codebook pattern by name, with its special ids; see lm/patterns/presets.py."""

    kind: Literal["preset"] = "preset"
    name: str
    """Name of the preset, for instance musicgen, dia or moshi."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"preset '{name}' is unknown; {nearest_name(name, PRESETS)}")
        return name


class AutoArrangementConfig(Config):
    """The codebook pattern that goes with the head: `flat` for the head flat; `parallel` for the heads depth and auto,
    and for models that fill in a frame or a scale at once; else `delay`, which is parallel for one codebook."""

    kind: Literal["auto"] = "auto"


AnyArrangementConfig = Annotated[ArrangementConfig | PresetConfig | AutoArrangementConfig, Field(discriminator="kind")]
"""Any codebook pattern that a model's config accepts."""
