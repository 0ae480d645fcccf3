"""The order of rotary channels: a permutation within each head, with an inverse, that leaves attention as it is."""

import pytest
import torch

from tessera.lm.ops.rotary import rotary_table, rotate
from tessera.lm.public.rotary_order import half_split_rows, interleaved_rows

SIZES = [(1, 2), (1, 8), (3, 4), (4, 6), (2, 16)]


@pytest.mark.parametrize(("heads", "width"), SIZES)
def test_pairs_stand_side_by_side(heads, width):
    """The slow way: row 2 i of head h is its row i, row 2 i + 1 its row i + E / 2."""
    rows = interleaved_rows(heads, width).tolist()
    for head in range(heads):
        for pair in range(width // 2):
            assert rows[head * width + 2 * pair] == head * width + pair
            assert rows[head * width + 2 * pair + 1] == head * width + width // 2 + pair


@pytest.mark.parametrize(("heads", "width"), SIZES)
def test_the_inverse_undoes_it(heads, width):
    rows = torch.randn(heads * width, 3)
    assert torch.equal(rows[interleaved_rows(heads, width)][half_split_rows(heads, width)], rows)
    assert torch.equal(rows[half_split_rows(heads, width)][interleaved_rows(heads, width)], rows)


@pytest.mark.parametrize(("heads", "width"), SIZES)
def test_scores_are_those_of_halves(heads, width):
    """Scores of queries and keys rotated in halves, as transformers does it, and of the reordered ones, in pairs."""
    queries, keys = torch.randn(2, 1, 5, heads, width, dtype=torch.float32).unbind()
    table = rotary_table(torch.arange(5).unsqueeze(-1), width, 10000.0)
    cos, sin = (torch.cat([part, part], dim=-1) for part in (table.real, table.imag))

    def in_halves(x):
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def in_pairs(x):
        return rotate(x.flatten(2)[:, :, interleaved_rows(heads, width)].unflatten(2, (heads, width)), table)

    expected = torch.einsum("bshe,bthe->bhst", in_halves(queries), in_halves(keys))
    found = torch.einsum("bshe,bthe->bhst", in_pairs(queries), in_pairs(keys))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # sums in another order


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="a head has 5"):
        interleaved_rows(2, 5)
