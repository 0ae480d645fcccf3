"""How codes of a codebook start, die and come back to life: L10 and L11 of the laws."""

import pytest
import torch
from quantizer_trees import CONFIGS, DIM, trained

from tessera.tokenize.quantizers.codebooks.codebook import REVIVE_EVERY
from tessera.tokenize.quantizers.registry import VQConfig, make_quantizer

# L10: dead codes. Trap 3: a stale average pulls the replacement back. Trap 15: a threshold that is not relative.


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["vq", "vq-gradient", "vq-projected-normalised", "vq-normalised", "vq-blend"])
@pytest.mark.parametrize("batch", [64, 2048])
def test_planted_dead_codes_come_back_to_life(name, batch):
    quantizer = trained(name)
    book = quantizer.codebook
    with torch.no_grad():  # half of the codes far away, with the history of a popular code
        if book.learned:
            book.weight[8:] = 0.0 if book.normalise else 1e3
            book.weight[8:, 0] = -1e6 if book.normalise else 1e3
        else:
            book.sum[8:] = 1e3 * book.count[8:, None]
    planted = book.entries()[8:].clone()
    for _ in range(60):
        x = torch.randn(batch, DIM)
        x[:, 0] += 3.0
        quantizer(x)
        quantizer.update()
    if not book.normalise:  # on the sphere a planted direction may be near the data by itself
        assert (book.entries()[8:] - planted).norm(dim=-1).min() > 1
    used = quantizer.eval().encode(torch.randn(4096, DIM) + torch.tensor([3.0] + [0.0] * (DIM - 1)))
    assert len(used.unique()) == 16


@pytest.mark.parametrize("batch", [16, 64, 4096])
def test_codes_in_fair_use_are_left_alone_whatever_the_batch(batch):
    torch.manual_seed(0)
    quantizer = make_quantizer(VQConfig(size=16, decay=0.99, kmeans_init=False), DIM)
    points = 10 * torch.randn(16, DIM)
    with torch.no_grad():
        quantizer.codebook.sum.copy_(points)
    for _ in range(4 * REVIVE_EVERY):
        quantizer(points[torch.arange(batch) % 16])
        quantizer.update()
    torch.testing.assert_close(quantizer.codebook.entries(), points, rtol=1e-4, atol=1e-4)  # sums of 256 floats


def test_revival_can_be_switched_off_without_harm():
    quantizer = make_quantizer(VQConfig(size=8, decay=0.1, revive_below=0, kmeans_init=False), DIM)
    for _ in range(100):  # a count of 1 decays to 1e-100, below what float32 holds
        quantizer(torch.ones(4, DIM))
        quantizer.update()
    assert quantizer.codebook.entries().isfinite().all()


# L11: the k-means start. Trap 2: averages start from the bare centre, and the first update shrinks all codes.


@pytest.mark.parametrize("name", ["vq", "vq-normalised", "residual-3"])
def test_kmeans_start_survives_the_first_updates(name):
    torch.manual_seed(0)
    config = CONFIGS[name]
    quantizer = make_quantizer(config, DIM)
    x = torch.randn(2000, DIM)
    for _ in quantizer.cardinalities:
        quantizer(x)
        quantizer.update()
    started, error = quantizer.vectors().clone(), (quantizer(x).values - x).square().mean()
    quantizer.update()
    moved = quantizer.vectors()
    assert (moved - started).norm() < 0.1 * started.norm()
    assert abs(moved.norm(dim=-1).mean() / started.norm(dim=-1).mean() - 1) < 0.02
    assert (quantizer(x).values - x).square().mean() < 1.02 * error


def test_a_level_starts_after_the_level_before_it():
    """Its data are the residuals of a codebook that stands: one level an update."""
    quantizer = make_quantizer(CONFIGS["residual-3"], DIM)
    for update in range(4):
        assert [bool(level.codebook.started) for level in quantizer.levels] == [level < update for level in range(3)]
        quantizer(torch.randn(100, DIM))
        quantizer.update()


def test_start_waits_for_data():
    quantizer = make_quantizer(CONFIGS["vq"], DIM)
    quantizer(torch.randn(4, DIM), torch.zeros(4, dtype=torch.bool))
    quantizer.update()
    assert not quantizer.codebook.started
    quantizer(torch.randn(4, DIM))  # fewer vectors than codes: the spare codes come to life later
    quantizer.update()
    assert quantizer.codebook.started and quantizer.codebook.entries().isfinite().all()
    for _ in range(2 * REVIVE_EVERY):
        quantizer(torch.randn(100, DIM))
        quantizer.update()
    assert len(quantizer.eval().encode(torch.randn(1000, DIM)).unique()) > 12


@pytest.mark.parametrize("name", ["vq", "vq-gradient", "residual-3"])
def test_a_non_finite_batch_moves_nothing(name):
    quantizer = trained(name, updates=REVIVE_EVERY - 1)
    for bad in (float("nan"), float("inf")):
        before = quantizer.vectors().clone()
        x = torch.randn(10, DIM)
        x[3, 2] = bad
        quantizer(x)
        quantizer.update()
        assert torch.equal(quantizer.vectors(), before)
