"""Training random numbers that do not depend on how many processes share a micro-batch.

Torch draws the noise of a micro-batch at once, so half of the rows would get different noise than in the whole batch.
Inside `part_of_rows` everything is drawn for the whole micro-batch, and each process takes the part of its rows:

    drawn for the whole       | row 0 | row 1 | row 2 | row 3 |
    process 0 of 2            | row 0 | row 1 |
    process 1 of 2                            | row 2 | row 3 |

A language model in training mode draws random numbers through these functions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class _Part:
    first: int
    count: int
    total: int


_part: ContextVar[_Part | None] = ContextVar("part of rows", default=None)


@contextmanager
def part_of_rows(first: int, count: int, total: int) -> Iterator[None]:
    """Declare the local rows to be first .. first + count - 1 of a micro-batch of `total` rows."""
    token = _part.set(_Part(first, count, total) if count < total else None)
    try:
        yield
    finally:
        _part.reset(token)


def rand(shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform in [0, 1), float32, from torch's global generator; the first axis is rows."""
    part = _part.get()
    if part is None:
        return torch.rand(*shape, device=device)
    return _own(torch.rand(_whole(shape, part), device=device), part)


class Dropout(nn.Dropout):
    """nn.Dropout for x [rows or rows * n, ...]."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not self.p:  # generation is compiled: the compiler cannot trace a ContextVar
            return input
        part = _part.get()
        if part is None:
            return super().forward(input)
        ones = input.new_ones(_whole(input.shape, part))
        return input * _own(F.dropout(ones, self.p), part)


def _whole(shape: Sequence[int], part: _Part) -> tuple[int, ...]:
    assert shape[0] % part.count == 0, f"the first axis of {list(shape)} is no multiple of {part.count} rows"
    return (shape[0] // part.count * part.total, *shape[1:])


def _own(noise: Tensor, part: _Part) -> Tensor:
    each = noise.shape[0] // part.total
    return noise[part.first * each : (part.first + part.count) * each]
