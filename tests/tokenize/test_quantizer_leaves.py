"""Leaves of a quantizer tree without a codebook, each beside a slow, obvious version of itself."""

import math

import pytest
import torch
from quantizer_trees import make

from tessera.tokenize.quantizers import regularization
from tessera.tokenize.quantizers.regularization import bit_entropies, code_entropies
from tessera.tokenize.quantizers.scalar import normal_centroids

V8 = {"kind": "vq", "size": 8, "kmeans_init": False}


# Binary codes.


@pytest.mark.sample(6)
@pytest.mark.parametrize("kind", ["lfq", "bsq"])
@pytest.mark.parametrize("bits", [1, 9, 18, 30, 36, 62])
def test_signs(kind, bits):
    """Trap 7: packed in bf16 a quarter of the codes is wrong at 9 bits, in float32 nearly all at 30."""
    quantizer = make(bits, kind=kind, bits=bits).eval()
    x = torch.randn(40, bits).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = quantizer(x)
    for row, code, values in zip(x.tolist(), result.codes[:, 0].tolist(), result.values.tolist(), strict=True):
        assert code == sum(1 << bit for bit, number in enumerate(row) if number > 0)
        size = bits**-0.5 if kind == "bsq" else 1.0
        assert values == pytest.approx([size if number > 0 else -size for number in row])


@pytest.mark.parametrize("kind", ["lfq", "bsq"])
def test_bit_entropies_equal_those_over_the_table_of_all_codes(kind):
    bits, temperature = 6, 0.7
    quantizer = make(bits, kind=kind, bits=bits, entropy={"group": bits, "temperature": temperature})
    x, mask = torch.randn(30, bits), torch.rand(30) < 0.7
    u = quantizer._inner(x).float()
    table = quantizer.vectors()[0]
    share = torch.softmax(-torch.cdist(u.double(), table.double()).square() / temperature, dim=-1)
    per_token, over_batch = bit_entropies(quantizer.logits(u, temperature), bits, mask)
    torch.testing.assert_close(per_token.double(), torch.special.entr(share).sum(dim=-1), rtol=1e-5, atol=1e-5)
    joint = torch.special.entr(share[mask].mean(dim=0)).sum()
    torch.testing.assert_close(over_batch.double(), joint, rtol=1e-5, atol=1e-5)
    by_bit = bit_entropies(quantizer.logits(u, temperature), 1, mask)[1]
    assert by_bit > over_batch  # bits depend on each other over the batch


@pytest.mark.parametrize("bits", [18, 40])
def test_bit_entropies_have_no_cap_and_no_nan(bits):
    """Trap 6: an epsilon caps the entropy at 11.5 nats; 18 bits in even use have 12.48, 40 bits 27.7."""
    logits = (1e6 * torch.randn(4096, bits, generator=torch.Generator().manual_seed(0))).requires_grad_()
    per_token, over_batch = bit_entropies(logits, 1, None)
    assert (per_token == 0).float().mean() > 0.9  # choices are certain
    assert over_batch.item() == pytest.approx(bits * math.log(2), rel=1e-3)
    (per_token.sum() - over_batch).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    certain = torch.full((8, bits), 1e4, requires_grad=True)
    bit_entropies(certain, 3, None)[1].backward()
    assert certain.grad is not None and certain.grad.isfinite().all()


def test_code_entropies_in_chunks(monkeypatch):
    monkeypatch.setattr(regularization, "PROBABILITIES", 30)
    x, entries = torch.randn(20, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    mask = torch.rand(20) < 0.6

    def slowly():
        share = torch.softmax(-torch.cdist(x, entries).square() / 0.5, dim=-1)
        return torch.special.entr(share).sum(dim=-1), torch.special.entr(share[mask].mean(dim=0)).sum()

    gradients = []
    for per_token, over_batch in (code_entropies(x, entries, 0.5, mask), slowly()):
        gradients.append(torch.autograd.grad(per_token.square().sum() - 3 * over_batch, (x, entries)))
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_entropy_of_many_codes_has_no_cap():
    entries = torch.arange(1 << 17).float()[:, None]
    per_token, over_batch = code_entropies(torch.full((1, 1), 3e4), entries, 1e14, None)
    assert per_token.item() == pytest.approx(17 * math.log(2), rel=1e-4)
    assert over_batch.item() == pytest.approx(17 * math.log(2), rel=1e-4)


def test_bernoulli_draws_while_training_only():
    quantizer = make(1, kind="bernoulli", bits=1)
    x = torch.full((4000, 1), math.log(3.0))
    assert quantizer(x).codes.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert (quantizer.eval()(x).codes == 1).all()


def test_a_blended_code_moves_to_a_latent_the_more_the_less_it_is_used():
    quantizer = make(2, **V8, revive="blend", revive_below=0.25)
    book, data = quantizer.codebook, torch.randn(5, 2)
    uses = torch.tensor([0.0, 8.0, 1.0, 2.0, 4.0, 1.0, 16.0, 0.5])
    book.sum.copy_(torch.randn(8, 2) * uses.clamp_min(0.1)[:, None])
    book.count.copy_(uses.clamp_min(0.1))
    before, fair = book.entries().clone(), float(book.count.mean())
    book._blend(data, book.count.mean())
    for code in range(8):
        part = math.exp(-max(0.1, float(uses[code])) / fair / 0.25)
        meant = [before[code] + part * (latent - before[code]) for latent in data]
        nearest = min(float((book.entries()[code] - wanted).norm()) for wanted in meant)
        if code in (1, 4, 6):  # three codes more than there are latents: the most used stay
            assert torch.equal(book.entries()[code], before[code])
        else:
            assert nearest < 1e-5


# Draws before the search.


def test_what_is_quantized_is_drawn_around_the_latent_while_training():
    quantizer = make(3, kind="gaussian", divergence=0.5, first_deviation=0.2, quantizer={"kind": "identity"})
    x = torch.randn(1, 3).expand(40000, 3)
    drawn = quantizer(x)
    torch.testing.assert_close(drawn.values.mean(0), x[0], atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.values.std(0), torch.full((3,), 0.2), atol=0.01, rtol=0)
    normal = torch.distributions.Normal(x[0], 0.2)
    apart = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(drawn.losses["divergence"][0], 0.5 * apart)
    assert torch.equal(quantizer.eval()(x).values, x)


def test_the_deviation_of_the_draws_learns_from_what_comes_behind():
    quantizer = make(2, kind="gaussian", divergence=0.0, first_deviation=0.5, quantizer=V8)
    x, target = torch.randn(200, 2), torch.randn(2)
    torch.manual_seed(3)
    result = quantizer(x)
    (result.values * target).sum().backward()
    spread = 0.5 * quantizer_noise(3, x)
    wanted = (spread * target * 0.5).sum(0)  # d exp(v / 2) / dv = exp(v / 2) / 2
    torch.testing.assert_close(quantizer.log_variance.bias.grad, wanted)


def quantizer_noise(seed, x):
    torch.manual_seed(seed)
    return torch.randn(len(x), 1, x.shape[1])[:, 0]


# Numbers per channel.


def test_scalar_takes_the_nearest_value_of_each_channel():
    """Trap 10: learned values that get no gradient, or leave their codes once they have moved."""
    quantizer = make(3, kind="scalar", size=5)
    with torch.no_grad():
        quantizer.table.copy_(torch.randn(3, 5))  # no longer in order
    x = torch.randn(50, 3)
    result = quantizer(x)
    for row, codes in zip(x.tolist(), result.codes.tolist(), strict=True):
        for number, code, values in zip(row, codes, quantizer.table.tolist(), strict=True):
            assert code == min(range(5), key=lambda v, values=values, number=number: abs(values[v] - number))
    assert torch.equal(result.values, quantizer.decode(result.codes))


@pytest.mark.parametrize("size", [2, 5, 64, 2000])
def test_quantile_bins(size):
    """A bin's value is the mean of a normal variable inside it."""
    draws = torch.randn(400_000, generator=torch.Generator().manual_seed(0)).sort().values
    values = torch.tensor(normal_centroids(size))
    assert (values.diff() >= 0).all() and values.tolist() == pytest.approx((-values.flip(0)).tolist(), abs=1e-6)
    if size < 100:
        means = torch.stack([part.mean() for part in draws.tensor_split(size)])
        torch.testing.assert_close(values, means, atol=0.03, rtol=0)


def test_a_step_for_one_code_of_a_bridge_moves_all():
    """Free vectors added past the bridge would move alone: the others then stay hundreds of times nearer."""
    quantizer = make(8, kind="vq", size=64, update="gradient", codebook={"kind": "bridge", "patch": 4, "width": 32})
    form = quantizer.codebook.form
    before = form().detach()
    (form()[0] - 1).square().sum().backward()
    with torch.no_grad():
        for parameter in form.parameters():
            parameter -= 1e-3 * parameter.grad
    moved = (form() - before).norm(dim=1)
    assert (moved > 0.02 * moved[0]).all()


def test_fitted_quantile_bins_come_near_the_latents():
    quantizer = make(4, kind="scalar", size=64, values="quantile")
    x = torch.randn(5000, 4) * torch.tensor([0.1, 1.0, 5.0, 20.0]) + torch.tensor([3.0, 0.0, -1.0, 50.0])
    quantizer.fit(x)
    error = (quantizer.eval()(x).values - x).square().mean(dim=0) / x.var(dim=0)
    assert (error < 0.01).all()


def test_lattice_rounds_to_its_spacing():
    quantizer = make(2, kind="lattice", size=9).eval()
    spacing = quantizer.log_spacing.exp().tolist()
    x = torch.randn(50, 2)
    for row, values in zip(x.tolist(), quantizer(x).values.tolist(), strict=True):
        for number, value, step in zip(row, values, spacing, strict=True):
            assert value == pytest.approx(max(-4, min(4, round(number / step))) * step, abs=1e-6)


def test_kmeans_leaf():
    quantizer = make(2, kind="kmeans", size=3)
    with pytest.raises(ValueError, match="no centers yet; call fit"):
        quantizer(torch.randn(5, 2))
    points = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-5.0, 5.0]])
    quantizer.fit((points[:, None] + 0.01 * torch.randn(3, 50, 2)).flatten(0, 1))
    assert sorted(quantizer.centres.round().tolist()) == sorted(points.tolist())
    with pytest.raises(ValueError, match="this quantizer .* has no part to fit"):
        make(2, **V8).fit(torch.randn(5, 2))


def test_identity_passes_latents_on():
    quantizer = make(3, kind="identity")
    x = torch.randn(4, 5, 3, requires_grad=True)
    result = quantizer(x)
    assert torch.equal(result.values, x) and result.codes.shape == (4, 5, 0) and not result.losses
    with pytest.raises(ValueError, match="has no codes"):
        quantizer.decode(result.codes)
