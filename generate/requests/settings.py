"""Checks of length, seeds and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Length:
    """How many frames to generate."""

    max_frames: int
    """Maximum number of frames, prompt included; the exact number when `fixed`."""
    min_frames: int = 1
    """No end before this many frames."""
    fixed: bool = False
    """The end is never drawn. Required for images and for models without an end code."""


def check_length(length: Length, variable_length: bool) -> Length:
    """The length; ValueError if it contradicts itself or the model."""
    if length.max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, found {length.max_frames}")
    if not 0 <= length.min_frames <= length.max_frames:
        raise ValueError(f"min_frames must be from 0 to max_frames ({length.max_frames}), found {length.min_frames}")
    if not length.fixed and not variable_length:
        raise ValueError("the model has no end code, so the number of frames must be fixed; pass Length(fixed=True)")
    return length


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds; ValueError unless there is at least one and all are 64-bit whole numbers."""
    if len(seeds) < 1:
        raise ValueError("no seeds were given; one is needed for each sample")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise ValueError(f"a seed must be a whole number of 64 bits, found {seed!r}")
    return list(seeds)


def seeds_from(seed: int, count: int) -> list[int]:
    """The seeds `seed`, `seed + 1`, ... of `count` samples; ValueError unless all are 64-bit whole numbers."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, found {seed!r}")
    if not -(2**63) <= seed <= 2**63 - count:
        more = f", so {count} samples need one of at most {2**63 - count}" if count > 1 else ""
        raise ValueError(f"seed must be from {-(2**63)} to {2**63 - 1}{more}, found {seed}")
    return [seed + i for i in range(count)]


def check_prompt(prompt: Tensor | None, B: int, cardinalities: Sequence[int], length: Length) -> Tensor:
    """The prompt [B, K, t], with t = 0 if there is none; ValueError if it is invalid."""
    K = len(cardinalities)
    if prompt is None:
        return torch.zeros(B, K, 0, dtype=torch.long)
    if prompt.dtype != torch.long or prompt.dim() != 3 or tuple(prompt.shape[:2]) != (B, K):
        raise ValueError(f"the prompt must be long [{B}, {K}, t], found {prompt.dtype} {list(prompt.shape)}")
    if prompt.shape[2] >= length.max_frames:
        raise ValueError(
            f"the prompt has {prompt.shape[2]} frames, but at most {length.max_frames} are generated, prompt "
            f"included; shorten it{'' if length.fixed else ' or raise max_frames'}"
        )
    for k, V in enumerate(cardinalities):
        if prompt.shape[2] and not 0 <= int(prompt[:, k].min()) <= int(prompt[:, k].max()) < V:
            raise ValueError(f"the prompt's codebook {k} must hold codes 0 to {V - 1}")
    return prompt
