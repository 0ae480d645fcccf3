"""Law of the nearest-code search: the distances of all codes in float64, one after the other, give the same codes."""

import pytest
import torch

from tessera.tokenize.quantizers.codebooks.nearest import nearest_code, nearest_few


def slow_distances(x, entries):
    """Squared distances [N, V] float64."""
    return torch.stack([(x.double() - entry.double()).square().sum(dim=-1) for entry in entries], dim=-1)


def check(x, entries):
    expected = slow_distances(x, entries).sort(dim=-1, stable=True)
    assert torch.equal(nearest_code(x, entries), expected.indices[:, 0])
    numbers, distances = nearest_few(x, entries, 3)
    assert torch.equal(numbers, expected.indices[:, :3])
    torch.testing.assert_close(distances, expected.values[:, :3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("largest", [0, 1e2, 1e4, 1e6, 1e9, 1e12, 1e19, 1e25, 3e38])
@pytest.mark.parametrize(("codes", "width"), [(16, 4), (64, 8), (200, 33)])
def test_one_vector_however_long_changes_no_other_code(codes, width, largest):
    draw = torch.Generator().manual_seed(codes)
    x, entries = torch.randn(64, width, generator=draw), torch.randn(codes, width, generator=draw)
    if largest:
        entries[3] *= largest / entries[3].abs().max()
    check(x, entries)


@pytest.mark.parametrize("copies", [2, 8, 9, 40])
def test_the_lower_number_wins_however_many_are_equal(copies):
    draw = torch.Generator().manual_seed(copies)
    entries = torch.randn(60, 6, generator=draw)
    where = torch.randperm(60, generator=draw)[:copies]
    entries[where] = entries[where[0]].clone()
    x = torch.cat([torch.randn(30, 6, generator=draw), entries[where] + 1e-4 * torch.randn(copies, 6, generator=draw)])
    check(x, entries)


def test_far_vectors_and_few_codes():
    draw = torch.Generator().manual_seed(0)
    entries = 1000 + 1e-3 * torch.randn(40, 5, generator=draw)
    check(1000 + 1e-3 * torch.randn(50, 5, generator=draw), entries)
    check(1e20 * torch.randn(20, 5, generator=draw), torch.randn(40, 5, generator=draw))
    check(torch.randn(20, 5, generator=draw), torch.randn(3, 5, generator=draw))
