"""Products of blocks of rows have the bits of each block's own product, tried or not."""

import random

import pytest
import torch

from tessera.tokenize.layers import row_products
from tessera.tokenize.layers.row_products import MOST_ROWS, add_product, tried


def one_by_one(y, x, weights, blocks):
    """The slow, obvious way."""
    for out, block in zip(y.chunk(blocks), x.chunk(blocks), strict=True):
        out.addmm_(block, weights)


@pytest.mark.parametrize("at_once", ["as tried", "never"])
@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_a_block_has_the_same_bits_in_any_company(seed, at_once, monkeypatch):
    if at_once == "never":
        monkeypatch.setattr(row_products, "tried", lambda *_: False)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    rows, blocks = rng.choice([1, 2, 3, 8, 16, 70]), rng.choice([1, 2, 5, 8, 33])
    inputs, outputs = rng.choice([16, 48, 64, 496, 2048]), rng.choice([16, 48, 64, 512])  # aligned blocks
    wide = torch.randn(inputs, outputs + rng.choice([0, 3]))
    weights = rng.choice([wide[:, :outputs], torch.randn(outputs, inputs).T])
    past = rng.choice([0, 3])  # as the second tap of a convolution
    x, y = torch.randn(past + blocks * rows * inputs)[past:].view(-1, inputs), torch.randn(blocks * rows, outputs)
    wanted = y.clone()
    one_by_one(wanted, x, weights, blocks)
    torch.testing.assert_close(wanted, y + x @ weights, rtol=1e-4, atol=1e-4)
    add_product(y, x, weights, blocks)
    assert torch.equal(y, wanted)


@torch.no_grad()
def test_what_was_tried_holds_for_other_numbers():
    """Kernels choose their order of additions by size, not by number; so one trial is enough."""
    for shape, rows in (((512, 2048), 8), ((2048, 512), 8), ((1024, 640), 16), ((37, 41), 3), ((512, 512), 1)):
        blocks = MOST_ROWS // rows
        weights = torch.empty(shape)
        if tried(shape, weights.stride(), rows, blocks, 0, torch.get_num_threads()):
            for scale in (1e-3, 1.0, 1e4):
                weights.normal_(std=scale)
                x, y = torch.randn(blocks * rows, shape[0]), torch.zeros(blocks * rows, shape[1])
                x[::3] = 0
                wanted = y.clone()
                one_by_one(wanted, x, weights, blocks)
                assert torch.equal(y.addmm_(x, weights), wanted)


def test_a_trial_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    tried.cache_clear()
    tried((5, 6), (6, 1), 2, 3, 0, torch.get_num_threads())
    assert torch.equal(torch.rand(3), wanted)
