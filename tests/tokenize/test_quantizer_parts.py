"""Each part of a quantizer tree beside a slow, obvious version of itself, and what trees are refused."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from tessera.tokenize import regularise
from tessera.tokenize import vq as vq_file
from tessera.tokenize.config import Config, ConfigError, check_config
from tessera.tokenize.files import write_safetensors
from tessera.tokenize.quantizer import QuantizerConfig, make_quantizer
from tessera.tokenize.regularise import bit_entropies, code_entropies, moment_distance
from tessera.tokenize.scalar import normal_centroids
from tessera.tokenize.vector_file import without_files
from tessera.tokenize.vq import soft_choice


class Tree(Config):
    quantizer: QuantizerConfig


def make(channels, /, **settings):
    torch.manual_seed(0)
    return make_quantizer(check_config({"quantizer": settings}, Tree).quantizer, channels)


V8 = {"kind": "vq", "size": 8, "kmeans_init": False}
RESIDUAL = {"kind": "residual", "levels": 2, "quantizer": V8}


# Binary codes.


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
    monkeypatch.setattr(regularise, "PROBABILITIES", 30)
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
    with pytest.raises(ValueError, match="no centres yet; call fit"):
        quantizer(torch.randn(5, 2))
    points = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-5.0, 5.0]])
    quantizer.fit((points[:, None] + 0.01 * torch.randn(3, 50, 2)).flatten(0, 1))
    assert sorted(quantizer.centres.round().tolist()) == sorted(points.tolist())
    with pytest.raises(ValueError, match="nothing in this quantizer .* is fitted"):
        make(2, **V8).fit(torch.randn(5, 2))


def test_identity_passes_latents_on():
    quantizer = make(3, kind="identity")
    x = torch.randn(4, 5, 3, requires_grad=True)
    result = quantizer(x)
    assert torch.equal(result.values, x) and result.codes.shape == (4, 5, 0) and not result.losses
    with pytest.raises(ValueError, match="has no codes"):
        quantizer.decode(result.codes)


# How codes move.


def test_index_backpropagation_reaches_every_code(monkeypatch):
    monkeypatch.setattr(vq_file, "PROBABILITIES", 20)
    x, entries = torch.randn(7, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
    weight = torch.randn(7, 3)
    share = torch.softmax(-torch.cdist(x, entries).square() / 0.8, dim=-1)
    slow = torch.autograd.grad(((share @ entries.detach()) * weight).sum(), (x, entries))
    fast = torch.autograd.grad((soft_choice(x, entries, entries.detach(), 0.8) * weight).sum(), (x, entries))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)
    quantizer = make(3, **V8, update="index")
    quantizer(torch.randn(2, 3)).values.square().sum().backward()
    assert (quantizer.codebook.weight.grad.abs().sum(dim=-1) > 0).all()
    plain = make(3, **V8, update="gradient")
    plain(torch.randn(2, 3)).values.square().sum().backward()
    assert (plain.codebook.weight.grad.abs().sum(dim=-1) > 0).sum() <= 2


def test_a_linear_codebook_moves_as_a_whole():
    quantizer = make(3, kind="vq", size=8, update="gradient", codebook={"kind": "linear"})
    before = quantizer.vectors().detach().clone()
    assert {name for name, _ in quantizer.named_parameters()} == {
        "codebook.form.linear.weight",
        "codebook.form.linear.bias",
    }
    quantizer(torch.randn(1, 3)).losses["codebook"].sum().backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter -= 0.1 * parameter.grad
    assert ((quantizer.vectors() - before).norm(dim=-1) > 0).all()
    x = torch.randn(5, 3)  # trap 8: decode that forgets the linear layer
    assert torch.equal(quantizer.eval()(x).values, quantizer.decode(quantizer.encode(x)))


def test_alternating_steps():
    quantizer = make(2, **V8, update="alternating", inner_steps=3, inner_rate=0.3, revive_below=0)
    entries, x = quantizer.vectors()[0].clone(), torch.randn(40, 2)
    codes = quantizer(x).codes[:, 0]
    quantizer.update()
    for code in range(8):
        wanted = entries[code]
        for _ in range(3):
            if (codes == code).any():
                wanted = wanted + 0.3 * (x[codes == code].mean(dim=0) - wanted)
        torch.testing.assert_close(quantizer.vectors()[0, code], wanted)


def test_search_by_angle_may_keep_lengths():
    quantizer = make(3, **V8, update="gradient", normalise=True, keep_length=True).eval()
    x = torch.randn(20, 3)
    best = (F.normalize(x, dim=-1) @ F.normalize(quantizer.codebook.weight, dim=-1).T).argmax(dim=-1)
    assert torch.equal(quantizer.encode(x)[:, 0], best)
    assert torch.equal(quantizer(x).values, quantizer.codebook.weight[best])


def test_rotation_is_the_rotation():
    quantizer = make(4, kind="rotation", quantizer=V8)
    x = torch.randn(6, 4, requires_grad=True)
    values = quantizer(x).values
    weight = torch.randn(6, 4)
    (values * weight).sum().backward()
    for row, value, factor, found in zip(x.detach(), values.detach(), weight, x.grad, strict=True):
        e, q = F.normalize(row, dim=0), F.normalize(value, dim=0)
        r = F.normalize(e + q, dim=0)
        matrix = torch.eye(4) - 2 * torch.outer(r, r) + 2 * torch.outer(q, e)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(4), atol=1e-5, rtol=0)
        scale = value.norm() / row.norm()
        torch.testing.assert_close(scale * matrix @ row, value)
        torch.testing.assert_close(found, scale * matrix.T @ factor)


def test_moments():
    x, entries, mask = torch.randn(60, 3) + 2, torch.randn(9, 3), torch.rand(60) < 0.5
    kept = x[mask]
    wanted = (kept.mean(0) - entries.mean(0)).square() + (
        kept.std(0, correction=0) - entries.std(0, correction=0)
    ).square()
    torch.testing.assert_close(moment_distance(x, entries, mask), wanted.mean())


@pytest.fixture
def vectors_file(tmp_path):
    path = tmp_path / "centres.safetensors"
    write_safetensors(path, {"centres": torch.randn(8, 5), "bad": torch.full((8, 3), math.nan)}, {})
    return str(path)


def test_codebooks_from_a_file(vectors_file):
    file = {"path": vectors_file, "tensor": "centres"}
    for layers in (1, 2):
        form = {"kind": "file", "file": file, "width": 5, "layers": layers}
        quantizer = make(3, kind="vq", size=8, update="gradient", codebook=form)
        assert quantizer.codebook.form.basis.abs().sum() > 0
        with without_files():
            again = make(3, kind="vq", size=8, update="gradient", codebook=form)
        assert again.codebook.form.basis.abs().sum() == 0
        again.load_state_dict(quantizer.state_dict())
        assert torch.equal(again.eval().vectors(), quantizer.eval().vectors())
    clusters = make(5, kind="vq", size=4, update="gradient", codebook={"kind": "clusters", "file": file})
    assert len(clusters.vectors()[0].unique(dim=0)) == 4
    assert len(make(5, kind="kmeans", size=8, file=file).encode(torch.randn(99, 5)).unique()) > 4


@pytest.mark.parametrize(
    ("size", "width", "path", "tensor", "message"),
    [
        (8, 5, "nowhere.safetensors", "centres", r"quantizer.codebook.file.path: nowhere.safetensors: no such file"),
        (8, 5, None, "codes", r"quantizer.codebook.file.tensor: .* has no tensor 'codes', but: bad, centres"),
        (9, 5, None, "centres", r"'centres' of .* is \[8, 5\], wanted \[9, 5\]"),
        (8, 4, None, "centres", r"'centres' of .* is \[8, 5\], wanted \[8, 4\]"),
        (8, 3, None, "bad", r"holds NaN"),
    ],
)
def test_codebooks_of_the_wrong_file(vectors_file, size, width, path, tensor, message):
    file = {"path": path or vectors_file, "tensor": tensor}
    with pytest.raises(ConfigError, match=message):
        make(3, kind="vq", size=size, update="gradient", codebook={"kind": "file", "file": file, "width": width})


# Combinators.


def test_group_is_its_parts_side_by_side():
    quantizer = make(6, kind="group", groups=3, quantizer=V8, disentangle=1.0).eval()
    x = torch.randn(9, 6)
    result = quantizer(x)
    parts = [group(piece) for group, piece in zip(quantizer.groups, x.chunk(3, dim=-1), strict=True)]
    assert torch.equal(result.codes, torch.cat([part.codes for part in parts], dim=-1))
    assert torch.equal(result.values, torch.cat([part.values for part in parts], dim=-1))
    torch.testing.assert_close(result.losses["commitment"], sum(part.losses["commitment"] for part in parts) / 3)
    pairs = [F.cosine_similarity(a.values, b.values, dim=-1) ** 2 for a, b in itertools.combinations(parts, 2)]
    torch.testing.assert_close(result.losses["disentangle"], sum(pairs) / 3)


def test_shared_parts_have_one_state():
    for settings in ({"kind": "residual", "levels": 4}, {"kind": "group", "groups": 2}):
        shared = make(6, **settings, shared=True, quantizer=V8)
        assert len([name for name in shared.state_dict() if name.endswith("codebook.sum")]) == 1
        vectors = shared.vectors()
        tables = vectors if settings["kind"] == "residual" else torch.stack(vectors.chunk(2, -1))[[0, 1], [0, 1]]
        assert all(torch.equal(table, tables[0]) for table in tables)


def test_language_codec_is_a_chain():
    """Its first three levels see a third of the channels each, the others what is left of all."""
    stages = [{"kind": "group", "groups": 3, "quantizer": V8}, {"kind": "residual", "levels": 5, "quantizer": V8}]
    quantizer = make(6, kind="chain", stages=stages).eval()
    x = torch.randn(11, 6)
    rest, codes = x, []
    for table in quantizer.vectors()[:3]:
        own = (table.abs().sum(dim=0) > 0).nonzero()[:, 0]
        codes.append(torch.cdist(x[:, own], table[:, own]).argmin(dim=-1))
    rest = x - sum(quantizer.vectors()[level, code] for level, code in enumerate(codes))
    for level in range(3, 8):
        codes.append(torch.cdist(rest, quantizer.vectors()[level]).argmin(dim=-1))
        rest = rest - quantizer.vectors()[level, codes[-1]]
    assert torch.equal(quantizer.encode(x), torch.stack(codes, dim=-1))
    torch.testing.assert_close(quantizer(x).values, x - rest)


def test_level_choices_are_drawn_per_sample():
    quantizer = make(4, kind="residual", levels=4, quantizer=V8, level_dropout=1.0, level_choices=[0, 2, 4])
    kept = (quantizer(torch.randn(300, 2, 4)).codes >= 0).sum(dim=-1)
    assert set(kept.flatten().tolist()) == {0, 2, 4} and (kept[:, 0] == kept[:, 1]).all()
    nested = make(4, kind="group", groups=4, quantizer=V8, level_dropout=1.0)
    codes = nested(torch.randn(300, 2, 4)).codes
    assert ((codes >= 0).long().diff(dim=-1) <= 0).all() and set((codes >= 0).sum(dim=-1).flatten().tolist()) == {
        1,
        2,
        3,
        4,
    }


def test_strides_average_and_repeat():
    quantizer = make(3, kind="stride", every=3, quantizer=V8).eval()
    x = torch.randn(2, 7, 3)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    codes = quantizer.encode(x, mask=mask)
    for sample, places in ((0, [0, 3, 6, 7]), (1, [0, 3, 4])):
        for first, end in itertools.pairwise(places):
            mean = x[sample, first:end].mean(dim=0)
            assert (codes[sample, first:end] == quantizer.inner.encode(mean)).all()
    assert (codes[1, 4:] == -1).all()


def test_later_levels_do_not_pull_the_codes_of_earlier_ones():
    """A rest with a gradient through the level before would: its codes then serve two masters."""
    levels = {"kind": "residual", "levels": 3, "quantizer": {**V8, "update": "gradient"}}
    quantizer = make(4, **levels)
    x = torch.randn(20, 4)
    sum(loss.sum() for loss in quantizer(x).losses.values()).backward()
    alone = make(4, **levels).levels[0]
    alone(x).losses["codebook"].sum().backward()
    torch.testing.assert_close(quantizer.levels[0].codebook.weight.grad, alone.codebook.weight.grad)


def test_the_gradient_of_values_reaches_the_projection_in():
    quantizer = make(5, kind="project", dim=3, quantizer=V8)
    x, weight = torch.randn(20, 5), torch.randn(20, 5)
    (quantizer(x).values * weight).sum().backward()
    wanted = (weight @ quantizer.project_out.weight).T @ x  # as if the quantizer inside were the identity
    torch.testing.assert_close(quantizer.project_in.weight.grad, wanted)


def test_branches_add_up():
    project = {"kind": "project", "dim": 3, "quantizer": V8}
    quantizer = make(4, kind="branches", branches={"a": {"quantizer": project}, "b": {"quantizer": V8}}).eval()
    x = torch.randn(9, 4)
    wanted = quantizer.branches["a"](x).values + quantizer.branches["b"](x).values
    assert torch.equal(quantizer(x).values, wanted)


def test_shared_index_takes_the_lowest_weighted_sum():
    parts = {"deep": {"channels": 2, "normalise": True, "weight": 3.0}, "fine": {"channels": 3, "weight": 0.4}}
    quantizer = make(5, kind="shared_index", size=9, parts=parts, kmeans_init=False).eval()
    x, table = torch.randn(40, 5), quantizer.vectors()[0]
    torch.testing.assert_close(table[:, :2].norm(dim=-1), torch.ones(9))
    deep = torch.cdist(F.normalize(x[:, :2], dim=-1), table[:, :2]).square()
    fine = torch.cdist(x[:, 2:], table[:, 2:]).square()
    assert torch.equal(quantizer.encode(x)[:, 0], (3 * deep + 0.4 * fine).argmin(dim=-1))


def test_skipped_samples_keep_their_latents():
    quantizer = make(3, kind="skip", share=0.5, quantizer={**V8, "revive_below": 0})
    x = torch.randn(200, 4, 3)
    result = quantizer(x)
    skipped = (result.codes < 0)[..., 0]
    assert 60 < skipped[:, 0].sum() < 140 and (skipped == skipped[:, :1]).all()
    assert torch.equal(result.values[skipped], x[skipped]) and (result.losses["commitment"][skipped] == 0).all()
    assert quantizer.inner.codebook.collected[0].sum() == (~skipped).sum()
    assert (quantizer.eval()(x).codes >= 0).all()


def test_tails_are_drawn_per_sample():
    """Trap 18: one length for the whole batch."""
    quantizer = make(3, kind="tail", shortest=3, quantizer=V8)
    kept = (quantizer(torch.randn(300, 6, 3)).codes >= 0)[..., 0]
    assert set(kept.sum(dim=1).tolist()) == {3, 4, 5, 6} and (kept.long().diff(dim=1) <= 0).all()
    assert (quantizer.eval()(torch.randn(20, 6, 3)).codes >= 0).all()


# Scales: whole samples, so the laws are written for them alone.


def make_scales(**settings):
    sizes = [[1, 1], [2, 2], [3, 4]]
    return make(5, kind="scales", sizes=sizes, quantizer={"kind": "vq", "size": 16}, **settings)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("convolutions", [0, 2])
def test_scales(shared, convolutions):
    quantizer = make_scales(shared=shared, convolutions=convolutions)
    for _ in range(5):
        result = quantizer(torch.randn(8, 12, 5))
        assert torch.equal(result.values, quantizer.decode(result.codes))
        quantizer.update()
    x = torch.randn(4, 3, 4, 5, requires_grad=True)
    weight = torch.randn_like(x)
    (quantizer(x).values * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    quantizer.eval()
    result, codes = quantizer(x), quantizer.encode(x)
    assert torch.equal(result.codes, codes) and torch.equal(result.values, quantizer.decode(codes))
    assert torch.equal(codes[1:3], quantizer.encode(x[1:3]))
    used = (codes.view(4, 12, 3) >= 0).sum(dim=1)
    assert (used == torch.tensor([1, 4, 12])).all()
    # The slow way, one picture.
    total, picture = torch.zeros(1, 5, 3, 4), x[:1].detach().permute(0, 3, 1, 2)
    for number, size in enumerate([(1, 1), (2, 2), (3, 4)]):
        level = quantizer.levels[0 if shared else number]
        small = F.adaptive_avg_pool2d(picture - total, size).flatten(2).transpose(1, 2)
        own = level.encode(small)
        assert torch.equal(own[0, :, 0], codes.view(4, 12, 3)[0, : size[0] * size[1], number])
        large = F.interpolate(level.decode(own).transpose(1, 2).view(1, 5, *size), (3, 4), mode="bicubic")
        if convolutions:
            large = 0.5 * large + 0.5 * quantizer.phi[[0, 0, 1][number]](large)
        total = total + large
    torch.testing.assert_close(result.values[0].detach(), total[0].permute(1, 2, 0).detach(), atol=1e-5, rtol=1e-5)


def test_scales_refuse_other_maps_and_parts_of_samples():
    quantizer = make_scales()
    with pytest.raises(ValueError, match="scales are for 3 x 4 places a sample, found 13"):
        quantizer(torch.randn(2, 13, 5))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1] = False
    result = quantizer(torch.randn(2, 12, 5), mask)
    assert (result.codes[1] == -1).all() and (result.values[1] == 0).all()
    mask[0, 3] = False
    with pytest.raises(ValueError, match="mask all of its places or none"):
        quantizer(torch.randn(2, 12, 5), mask)


# Trees that cannot be.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "residual", "levels": 2, "quantizer": {"kind": "group", "groups": 4, "quantizer": V8}},
            r"quantizer\.quantizer\.groups: 4 groups do not divide 6 channels",
        ),
        (
            {"kind": "chain", "stages": [V8, {"kind": "rotation", "quantizer": V8}]},
            r"quantizer\.stages\.1: rotation .* outermost",
        ),
        (
            {"kind": "branches", "branches": {"a": {"source": [2, 9], "quantizer": V8}}},
            r"quantizer\.branches\.a\.source: channels 2 to 9 are not among the 6",
        ),
        (
            {"kind": "branches", "branches": {"a": {"source": [0, 3], "quantizer": V8}}},
            r"no branch reads channel 3",
        ),
        (
            {
                **{"kind": "branches", "disentangle": 1.0},
                "branches": {"a": {"source": [0, 3], "quantizer": V8}, "b": {"quantizer": V8}},
            },
            r"quantizer\.disentangle: the branches have different widths",
        ),
        (
            {"kind": "shared_index", "size": 4, "parts": {"a": {"channels": 4}}},
            r"quantizer\.parts: they have 4 channels together, the latents 6",
        ),
        (
            {
                **{"kind": "skip", "share": 0.1},
                "quantizer": {**RESIDUAL, "level_dropout": 1.0, "level_choices": [3]},
            },
            r"quantizer\.quantizer\.level_choices: 3 is more than the 2 levels",
        ),
        ({"kind": "residual", "levels": 2, "quantizer": V8, "level_choices": [1]}, "level_dropout is 0"),
        (
            {"kind": "scales", "sizes": [[1, 1], [2, 2]], "quantizer": RESIDUAL},
            r"quantizer\.quantizer: a place of a scale has one code",
        ),
        ({"kind": "scales", "sizes": [[3, 1], [2, 2]], "quantizer": V8}, r"quantizer\.sizes\.0: 3 x 1 is larger"),
        ({"kind": "lfq", "bits": 20, "entropy": {"group": 13}}, r"quantizer\.entropy\.group: 13 bits are too many"),
        (
            {"kind": "vq", "size": 9, "update": "gradient", "codebook": {"kind": "bridge", "patch": 4}},
            r"quantizer\.codebook\.patch: 4 does not divide 9",
        ),
        ({"kind": "vq", "size": 8, "codebook": {"kind": "linear"}}, "a linear codebook cannot be moved by .* 'ema'"),
        ({"kind": "vq", "size": 8, "keep_length": True}, "only with normalise"),
        ({"kind": "group", "groups": 2, "quantizer": {"kind": "vq", "sise": 8}}, "quantizer"),
        ({"kind": "lfq", "bits": 63}, "less than or equal to 62"),
    ],
)  # fmt: skip
def test_impossible_trees_name_the_node(settings, message):
    with pytest.raises(ConfigError, match=message):
        make(6, **settings)


def test_unknown_keys_deep_in_a_tree_name_the_nearest():
    with pytest.raises(ConfigError, match=r"group\.quantizer\.vq\.decy: unknown key; did you mean 'decay'"):
        make(6, kind="group", groups=2, quantizer={"kind": "vq", "size": 8, "decy": 0.9})


def test_fields_added_later_leave_old_dumps_alone():
    """A fingerprint is over the dump; the bundled tokenizers were made before most fields existed."""
    plain = check_config({"quantizer": {"kind": "residual", "levels": 2, "quantizer": V8}}, Tree)
    dump = plain.model_dump(mode="json")["quantizer"]
    assert set(dump) == {"kind", "levels", "quantizer", "level_dropout"}
    assert set(dump["quantizer"]) == {
        *("kind", "size", "code_dim", "normalise", "update", "decay", "commitment", "revive_below", "kmeans_init")
    }
    rich = check_config({"quantizer": {**V8, "normalise": True, "keep_length": True}}, Tree)
    assert rich.model_dump()["quantizer"]["keep_length"] is True
    assert check_config(rich.model_dump(mode="json"), Tree) == rich
