"""Laws of quantizers that only a trap of test_traps.py asks for; the others stand in test_quantizer_laws.py."""

import copy
import math
import sys

import pytest
import quantizer_trees as trees
import torch
from planting import TwoRanks

from tessera.tokenize.quantizers import regularization
from tessera.tokenize.quantizers.codebooks.codebook import REVIVE_EVERY
from tessera.tokenize.quantizers.registry import make_quantizer
from tessera.train.evaluation import reconstruction_metrics


def make(name, dim=trees.DIM):
    torch.manual_seed(0)
    return make_quantizer(trees.CONFIGS[name], dim)


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
def test_a_rotation_of_many_levels_is_one_rotation(levels):
    """Trap 1: one rotation a level multiplies the gradient by 0.6 to 4.6. One keeps its length, but for |q| / |x|."""
    inner = {"kind": "residual", "levels": levels, "quantizer": trees.V16}
    quantizer = make_quantizer(trees.tree(kind="rotation", quantizer=inner), trees.DIM)
    torch.manual_seed(levels)
    x, weight = torch.randn(50, trees.DIM, requires_grad=True), torch.randn(50, trees.DIM)
    values = quantizer(x).values
    (values * weight).sum().backward()
    wanted = weight.norm(dim=-1) * values.detach().norm(dim=-1) / x.detach().norm(dim=-1)
    torch.testing.assert_close(x.grad.norm(dim=-1), wanted)


def test_entropies_over_two_ranks(monkeypatch):
    """Trap 5: shares of 1 and 2 are 1.5 for both, not 0.5 and 1; eight bits in even use have 5.54 nats, not 3.12."""
    ones = torch.ones(())
    found = TwoRanks().run(monkeypatch, lambda rank: regularization._share_of_all(torch.tensor([1.0 + rank]), ones))
    assert [share.item() for share in found] == [1.5, 1.5]
    signs = 2.0 * (torch.arange(256)[:, None] >> torch.arange(8) & 1) - 1  # rank 0 has the codes below 128
    entropies = TwoRanks().run(
        monkeypatch, lambda rank: regularization.bit_entropies(1e3 * signs[128 * rank :][:128], 8, None)[1]
    )
    assert [value.item() for value in entropies] == pytest.approx([8 * math.log(2)] * 2)


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", trees.CONFIGS)
def test_codes_stay_in_range(name):
    """Trap 7 (vector-quantize-pytorch#240): latents far away, while training too."""
    quantizer = trees.fresh(name)
    sizes = torch.tensor(quantizer.cardinalities)
    for training in (True, False):
        for scale in (1e4, 1e-30, 0.0):
            codes = quantizer.train(training)(scale * torch.randn(40, 3, trees.DIM)).codes
            assert (codes >= -1).all() and (codes < sizes).all()


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", [name for name in trees.NOT_RANDOM if name in trees.PER_PLACE])
def test_losses_with_a_mask_equal_those_without_the_rest(name):
    """Trap 9: padding that the entropy over the batch counts as latents of 0."""
    first = trees.fresh(name)
    second = copy.deepcopy(first)
    x, mask = torch.randn(4, 9, trees.DIM), torch.rand(4, 9) < 0.6
    masked, alone = first(x, mask).losses, second(x[mask]).losses
    for loss, value in alone.items():
        torch.testing.assert_close(masked[loss][mask], value, atol=1e-5, rtol=1e-4)  # sums over other numbers of rows


@pytest.mark.parametrize("name", ["vq", "residual-3", "vq-alternating", "vq-gradient", "branches-split"])
def test_a_rank_without_tokens_takes_part(name, monkeypatch):
    """Trap 11: it also revives dead codes, and the quantizers are older than the process group."""
    quantizers = [make(name) for _ in range(3)]
    generator = torch.Generator().manual_seed(1)
    batches = torch.randn(2 * REVIVE_EVERY + 4, 16, trees.DIM, generator=generator)

    def learn(rank):
        for step, x in enumerate(batches):
            tokens = x[:8] if rank == 0 else x[8:]
            mask = torch.full((8,), rank == 0 or step < 3)
            quantizers[rank](tokens, mask)
            quantizers[rank].update()

    ranks = TwoRanks()
    ranks.run(monkeypatch, learn)
    for step, x in enumerate(batches):
        quantizers[2](x, torch.arange(16) < (16 if step < 3 else 8))
        quantizers[2].update()
    zero, one, alone = map(trees.state_of, quantizers)
    assert trees.same_state(zero, one)
    for key, value in alone.items():
        torch.testing.assert_close(zero[key], value, atol=1e-5, rtol=1e-4)


def test_an_update_has_one_collective(monkeypatch):
    """Trap 12: whatever the number of levels."""
    quantizers, ranks = [make("residual-8"), make("residual-8")], TwoRanks()

    def learn(rank):
        quantizers[rank](torch.ones(4, trees.DIM))
        quantizers[rank].update()

    ranks.run(monkeypatch, learn)
    assert ranks.calls == 1


@pytest.mark.parametrize(
    "name", ["vq-gradient", "vq-index-gradient", "vq-affine-gradient", "scalar-gradient", "lattice-gradient"]
)
def test_commitment_pulls_latents_and_the_codebook_loss_codes(name):
    """Trap 13: 0.25 is for the pull on the encoder."""
    quantizer = make(name).train()
    x = torch.randn(30, trees.DIM, requires_grad=True)
    result = quantizer(x)
    squares = (x - quantizer.decode(result.codes)).square().mean(dim=-1).detach()
    torch.testing.assert_close(result.losses["commitment"].detach(), 0.25 * squares)
    torch.testing.assert_close(result.losses["codebook"].detach(), squares)
    everything = [x, *quantizer.parameters()]
    for loss, pulled in (("commitment", [True]), ("codebook", [False])):
        found = torch.autograd.grad(result.losses[loss].sum(), everything, retain_graph=True, allow_unused=True)
        moves = [gradient is not None and bool(gradient.any()) for gradient in found]
        assert moves == pulled + [not pulled[0]] * (len(everything) - 1), loss


@pytest.mark.parametrize("inner", ["vq", "vq-linear-gradient", "residual-3", "vq-projected", "bernoulli"])
def test_rotation_leaves_values_and_losses_alone(inner):
    """Trap 16: only the gradient of the values turns, also for a codebook that moves as a whole or random codes."""
    plain = trees.fresh(inner)
    turned = make_quantizer(trees.tree(kind="rotation", quantizer=trees.CONFIGS[inner].model_dump()), trees.DIM)
    turned.inner.load_state_dict(plain.state_dict())
    x, found = torch.randn(3, 20, trees.DIM, requires_grad=True), []
    for quantizer in (plain, turned):
        torch.manual_seed(1)
        found.append(quantizer(x))
    a, b = found
    assert torch.equal(a.values, b.values) and torch.equal(a.codes, b.codes)
    for name, loss in a.losses.items():
        assert torch.equal(loss, b.losses[name]), name
        (one,), (other,) = (torch.autograd.grad(result.losses[name].sum(), x, allow_unused=True) for result in found)
        assert (one is None and other is None) or torch.equal(one, other), name


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", ["lfq", "bsq", "vq-entropy", "vq-index-gradient", "vq-index-gradient-projected"])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e5])
def test_losses_and_gradients_are_finite(name, scale):
    """Trap 17: a soft choice that is certain has probabilities of 0, whose logarithms must not reach a gradient."""
    quantizer = trees.fresh(name)
    x = (scale * torch.randn(20, trees.DIM)).requires_grad_()
    result = quantizer(x)
    (result.values.sum() + sum(loss.sum() for loss in result.losses.values())).backward()
    assert all(loss.isfinite().all() for loss in result.losses.values())
    assert all(leaf.grad.isfinite().all() for leaf in (x, *quantizer.parameters()) if leaf.grad is not None)


def test_lookup_free_codes_leave_a_collapse():
    """Trap 17: all latents begin in one code of 64; the entropy over the batch spreads them."""
    entropy = {"sample": 0.1, "batch": 1.0, "temperature": 1.0}
    settings = {"kind": "lfq", "bits": 6, "commitment": 0.0, "entropy": entropy}
    quantizer = make_quantizer(trees.tree(**settings), 6)
    x = (0.5 + 0.05 * torch.randn(256, 6, generator=torch.Generator().manual_seed(0))).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(x).losses["entropy"].sum().backward()
        optimizer.step()
    assert len(quantizer.encode(x).unique()) > 32


def test_a_measure_that_fails_is_no_number(monkeypatch):
    """Trap 19: what a package refuses is not measured; any other error comes out."""

    class Refuses(Exception):
        """As the package's own."""

    def measure(error):
        def raising(*_):
            raise error

        package = type(sys)("pesq")
        package.PesqError, package.pesq = Refuses, raising
        monkeypatch.setitem(sys.modules, "pesq", package)
        return reconstruction_metrics.pesq(torch.ones(16000), torch.ones(16000), 16000)

    assert measure(Refuses("no utterance")) is None
    try:
        measure(ZeroDivisionError("a fault"))
    except ZeroDivisionError:
        return
    raise AssertionError("a fault of the measure was taken for a result")
