"""Counter-based random numbers: one uniform number per (seed, step, codebook, draw), without state.

With a stateful generator, the draws of a row would depend on the other rows of the batch and on earlier draws. Here
each draw is a hash of its coordinates, in 64-bit integer arithmetic that is exact on every device, so a row gets the
same numbers alone, in a batch, in another order, streamed or resumed.
Source of the mixing function: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), public domain constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import triton_sampling

# int64 arithmetic wraps modulo 2^64, as the hash requires; the constants are written as signed values for torch.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
MOST_NUMBERS = 1 << 20
"""Largest table of `StepNumbers`: 8 MB."""


def uniform(seeds: Tensor, step: int | Tensor, num_codebooks: int, draw: int = 0) -> Tensor:
    """One number in the open interval (0, 1) for each row and codebook of a step.

    Args:
        seeds: [B], long, any values.
        step: step of the codebook pattern, >= 0 (an int or a 0-d long tensor).
        num_codebooks: K.
        draw: index of the number within a cell, 0 to 2^30; a second draw uses another index.
    Returns:
        [B, K], float64. Never 0 and never 1: 52 random bits plus a half.
    """
    if isinstance(step, Tensor) and triton_sampling.supports(seeds):
        return triton_sampling.uniform(seeds, step, num_codebooks, draw)
    return _numbers(seeds, step, num_codebooks, draw)


def _numbers(seeds: Tensor, step: int | Tensor, num_codebooks: int, draw: int) -> Tensor:
    """`uniform` of one step, or of a step [B] for each row."""
    codebooks = torch.arange(num_codebooks, device=seeds.device)
    hashed = _mix(_mix(_mix(seeds) + step)[:, None] + (codebooks + (draw << 32)))
    return (_shift(hashed, 12).double() + 0.5) * 2.0**-52


@dataclass(frozen=True)
class StepNumbers:
    """`uniform` of one draw, for the steps of a generation; from `step_numbers`."""

    seeds: Tensor
    """[B]"""
    num_codebooks: int
    draw: int
    table: Tensor | None
    """[S, B, K]: the numbers of all steps; None: each step computes its own."""

    def at(self, step: Tensor) -> Tensor:
        """The numbers [B, K] of a step, a 0-d long tensor."""
        if self.table is None:
            return uniform(self.seeds, step, self.num_codebooks, self.draw)
        return self.table.index_select(0, step.reshape(1))[0]


def step_numbers(seeds: Tensor, num_steps: int, num_codebooks: int, draw: int = 0) -> StepNumbers:
    """The numbers of steps 0 .. num_steps - 1 for seeds [B]; on a CPU computed here and now, unless they are very many:
    the thirty small operations of one step take as long as those of a hundred."""
    table = None
    if seeds.device.type == "cpu" and num_steps * len(seeds) * num_codebooks <= MOST_NUMBERS:
        steps = torch.arange(num_steps).repeat_interleave(len(seeds))
        table = _numbers(seeds.repeat(num_steps), steps, num_codebooks, draw).unflatten(0, (num_steps, -1))
    return StepNumbers(seeds, num_codebooks, draw, table)


def derived_seed(seed: int, part: int, attempt: int = 0) -> int:
    """The 64-bit seed of a part of a long sample and of an attempt at it; part 0, attempt 0 has the sample's seed."""
    if not part and not attempt:
        return seed
    return int(_mix(_mix(_mix(torch.tensor(seed)) + part) + attempt))


def _mix(x: Tensor) -> Tensor:
    """The SplitMix64 finalizer of x + golden ratio: a bijection of the 64-bit integers; each bit affects all others."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical (zero-filling) right shift of int64; `>>` alone would copy the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
