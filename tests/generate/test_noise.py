"""The hash behind every draw: uniform, independent along each axis, and blind to the batch."""

import pytest
import torch

from tessera.generate.sampling import counter_rng
from tessera.generate.sampling.counter_rng import uniform


def slow_uniform(seed: int, step: int, codebook: int, draw: int = 0) -> float:
    """The same with Python's own integers."""

    def mix(x):
        mask = (1 << 64) - 1
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    return ((mix(mix(mix(seed % 2**64) + step) + codebook + draw * 2**32) >> 12) + 0.5) * 2.0**-52


def test_equals_python_integers():
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789])
    for step in (0, 1, 1000):
        found = uniform(seeds, step, 5)
        expected = [[slow_uniform(int(seed), step, k) for k in range(5)] for seed in seeds]
        assert found.tolist() == expected
        assert uniform(seeds, step, 5, draw=1)[:, 4].tolist() == [slow_uniform(int(seed), step, 4, 1) for seed in seeds]


def test_numbers_of_a_release_stay_the_same():
    """Golden: a seed must give the same media in every release."""
    assert uniform(torch.tensor([42]), 7, 2)[0].tolist() == [0.08054066123479331, 0.544466049394383]


def test_a_row_does_not_depend_on_the_batch():
    seeds = torch.arange(100)
    whole = uniform(seeds, 3, 4)
    order = torch.randperm(100)
    assert torch.equal(uniform(seeds[order], 3, 4), whole[order])
    assert torch.equal(uniform(seeds[7:8], 3, 4), whole[7:8])
    assert torch.equal(uniform(seeds, torch.tensor(3), 9)[:, :4], whole)


@pytest.mark.parametrize("most", [0, 1 << 20], ids=["each step", "table"])
def test_the_numbers_of_steps_are_those_of_each(most, monkeypatch):
    monkeypatch.setattr(counter_rng, "MOST_NUMBERS", most)
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, 123456789])
    for draw in (0, 2):
        numbers = counter_rng.step_numbers(seeds, 70, 5, draw)
        assert (numbers.table is None) == (most == 0)
        for step in (69, 0, 33):
            assert numbers.at(torch.tensor(step)).equal(uniform(seeds, step, 5, draw))


def draws(num_seeds=64, num_steps=64, num_codebooks=16, draw=0) -> torch.Tensor:
    seeds = torch.arange(num_seeds)
    return torch.stack([uniform(seeds, step, num_codebooks, draw) for step in range(num_steps)], dim=1)


def test_uniform():
    u = draws().flatten()
    assert u.min() > 0 and u.max() < 1
    n, bins = len(u), 64
    counts = torch.histc(u, bins, 0, 1)
    chi = ((counts - n / bins) ** 2 / (n / bins)).sum()
    assert chi < 110, "chi-square of 63 degrees of freedom: above 110 has probability 0.0002"
    assert abs(u.mean() - 0.5) < 4.5 * (1 / 12 / n) ** 0.5


def test_neighbours_are_independent():
    u = draws()
    pairs = {
        "seed": (u[:-1], u[1:]),
        "step": (u[:, :-1], u[:, 1:]),
        "codebook": (u[:, :, :-1], u[:, :, 1:]),
        "seed + 1 against step + 1": (u[1:, :-1], u[:-1, 1:]),  # a hash of the sum would make these equal
        "step + 1 against codebook + 1": (u[:, 1:, :-1], u[:, :-1, 1:]),
        "draw": (u, draws(draw=1)),
    }
    for name, (a, b) in pairs.items():
        a, b = a.flatten(), b.flatten()
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
        assert abs(correlation) < 4.5 / len(a) ** 0.5, name
        joint = torch.histc((a * 8).floor() * 8 + (b * 8).floor(), 64, 0, 64)
        chi = ((joint - len(a) / 64) ** 2 / (len(a) / 64)).sum()
        assert chi < 115, name
    assert len(u.unique()) == u.numel()
