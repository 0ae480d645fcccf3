"""Choosing the largest: as sorting does, and the same whatever rounding does to equal values."""

import pytest
import torch

from tessera.lm.ops.near_ties import is_small, largest

CLOSE = 1e-4


def slow(values, count, preference):
    """By value, and by preference where values are equal."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], -preference[i]))[:count]
    return [i in order and values[i] > -torch.inf for i in range(len(values))]


@pytest.mark.sample(8)
@pytest.mark.parametrize("seed", range(20))
def test_the_largest_by_value_and_then_by_preference(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 8, (5, 12), generator=generator).float()
    values[torch.rand(5, 12, generator=generator) < 0.2] = -torch.inf
    preference = torch.rand(5, 12, generator=generator).double()
    open_ = (values > -torch.inf).sum(1)
    for share in (0.0, 0.3, 1.0):
        count = (open_ * share).long()[:, None]
        found = largest(values, count, preference, CLOSE)
        for b in range(5):
            assert found[b].tolist() == slow(values[b].tolist(), int(count[b]), preference[b].tolist())


@pytest.mark.parametrize("levels", [1, 3, 20, 10_000])
def test_rounding_decides_nothing(levels):
    """Values on a few levels, or on many: a change by what kernels round by chooses the same ones."""
    generator = torch.Generator().manual_seed(levels)
    B, N = 200, 64
    values = torch.randint(0, levels, (B, N), generator=generator).double() / levels * 4
    preference = torch.rand(B, N, generator=generator).double()
    count = torch.randint(0, N + 1, (B, 1), generator=generator)
    wanted = largest(values, count, preference, CLOSE)
    assert wanted.sum(1).equal(count[:, 0])
    for _ in range(10):
        rounded = values + 4e-6 * (2 * torch.rand(B, N, generator=generator, dtype=torch.float64) - 1)
        assert largest(rounded, count, preference, CLOSE).equal(wanted)


def test_small_distances():
    """The width has its edge where no distance is: 1.1 is too near to 1, so 2 is taken."""
    assert is_small(torch.tensor([[0.0, 0.5, 1.1, 3.0], [0.0, 0.5, 1.5, 3.0]]), 1.0).tolist() == [
        [True, True, True, False],
        [True, True, False, False],
    ]
