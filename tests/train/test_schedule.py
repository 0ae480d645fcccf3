"""The learning rate: rises evenly, falls as a cosine, ends where it was told to."""

import math
from itertools import pairwise

import pytest

from tessera.train.engines.lr_schedule import learning_rate


def rates(steps: int, warmup: int, min_ratio: float = 0.1) -> list[float]:
    return [
        learning_rate(step, peak=2.0, steps=steps, warmup_steps=warmup, min_ratio=min_ratio)
        for step in range(steps + 3)
    ]


@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (10, 9), (5, 20), (1, 0)])
def test_shape(steps, warmup):
    found = rates(steps, warmup)
    assert all(0 < rate <= 2.0 for rate in found)
    rising = found[: min(warmup, steps)]
    assert all(math.isclose(rate, 2.0 * (step + 1) / warmup) for step, rate in enumerate(rising))
    falling = found[warmup:]
    assert all(first >= second for first, second in pairwise(falling))


def test_ends():
    found = rates(100, 10)
    assert found[9] == found[10] == 2.0
    assert math.isclose(found[99], 0.2)
    assert math.isclose(found[102], 0.2)  # beyond the end
    assert math.isclose(found[54] + found[55], 2.2, rel_tol=1e-9)  # the cosine is symmetric about its middle
