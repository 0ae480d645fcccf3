"""Regions: what a router chooses against loops over one picture, the budget, and how many codes there are to write.

The laws of all quantizers are in test_quantizer_laws.py and test_quantizer_products.py, `regions` among the rest.
"""

import pytest
import quantizer_trees as trees
import torch
from planting import TwoRanks

from tessera.configs.schema import ConfigError
from tessera.tokenize.audio.networks import AudioTokenizerConfig
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import RegionsConfig, ResidualConfig, StrideConfig, VQConfig, make_quantizer
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer

DIM = 5
VQ = {"kind": "vq", "size": 16, "decay": 0.9}
SIZES = {"square": (4, 4, 2), "wide": (4, 6, 2), "threes": (6, 3, 3), "one": (2, 2, 2)}
"""Rows, columns and side."""
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def make(columns, side=2, quantizer=VQ, **settings):
    return make_quantizer(trees.tree(kind="regions", columns=columns, side=side, quantizer=quantizer, **settings), DIM)


def started(size, quantizer=VQ, **settings):
    """In training mode, with codes that have started, and a router that likes half of the regions."""
    rows, columns, side = size
    torch.manual_seed(0)
    made = make(columns, side, quantizer=quantizer, **settings)
    for _ in range(4):
        made(torch.randn(30, rows * columns, DIM))
        made.update()
    with torch.no_grad():
        made.choice.weight.mul_(20)
        _, logits = made._route(*made._cut_with_mask(torch.randn(200, rows * columns, DIM), None))
        made.choice.bias -= logits.median()
    return made


def places_of(rows, columns, side):
    """Of each region the numbers of its places, in raster order."""
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            yield [(top + i) * columns + left + j for i in range(side) for j in range(side)]


@torch.no_grad()
def slow_codes(quantizer, x, mask, rows):
    """Codes [M] of one sample [M, D], -1 outside the mask, region by region and place by place."""
    config, found = quantizer.config, [-1] * len(x)
    entries = quantizer.inner.codebook.entries().double()

    def nearest(vector):
        return int((entries - vector).square().sum(dim=-1).argmin())

    for region in places_of(rows, config.columns, config.side):
        inside = [x[place].double() for place in region if mask[place]]
        if not inside:
            continue
        mean = sum(inside) / len(inside)
        deviation = (sum((one - mean) ** 2 for one in inside) / len(inside)) ** 0.5
        seen = torch.cat([mean, (deviation + 1e-3).log()])
        hidden = quantizer.hidden.weight.double() @ seen + quantizer.hidden.bias.double()
        hidden = hidden / (1 + torch.exp(-hidden))
        fine = bool(quantizer.choice.weight.double()[0] @ hidden + quantizer.choice.bias.double()[0] > 0)
        for place in region:
            if mask[place]:
                found[place] = nearest(x[place].double()) if fine else nearest(mean)
    return found


@each_size
def test_codes_are_those_of_loops(size):
    rows, columns, side = size
    quantizer = started(size).eval()
    x = torch.randn(40, rows * columns, DIM)
    x[:20] *= 0.2 + torch.rand(20, 1, 1)  # of unlike deviations
    whole = torch.ones(40, rows * columns, dtype=torch.bool)
    for mask in (whole, torch.rand(40, rows * columns) < 0.7):
        codes = quantizer.encode(x, mask=mask)[..., 0]
        slow = [slow_codes(quantizer, *pair, rows) for pair in zip(x, mask, strict=True)]
        assert codes.tolist() == slow
    cells = codes[:, list(places_of(rows, columns, side))]
    coarse = (cells == cells[..., :1]).all(dim=-1)
    assert coarse.any() and not coarse.all(), "both kinds of regions are tried"


@each_size
def test_whole_pictures_do_not_depend_on_the_batch_or_the_way_they_lie(size):
    rows, columns, _ = size
    quantizer = started(size).eval()
    x = torch.randn(7, rows, columns, DIM)
    codes = quantizer.encode(x)
    assert codes.shape == (7, rows, columns, 1)
    for number in range(7):
        assert torch.equal(quantizer.encode(x[number : number + 1].flatten(1, 2))[0], codes[number].flatten(0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(x), codes) and torch.equal(quantizer(x).codes, codes)
    assert torch.equal(quantizer(x).values, quantizer.decode(codes))


def test_a_coarse_region_counts_once():
    """Its one code is learned from once, and has one share of the losses, as a code of a fine region has."""
    quantizer = started((4, 4, 2))
    x = torch.randn(50, 16, DIM)
    mask = torch.rand(50, 16) < 0.8
    result = quantizer(x, mask)
    number, _ = quantizer.rate(result.codes)
    assert float(quantizer.inner.codebook.collected[0].sum()) == pytest.approx(float(number.sum()), rel=0.03)
    vectors = quantizer.vectors()[0]
    slow = torch.zeros(50, 16)
    for sample in range(50):  # what was drawn is read off the codes
        for region in places_of(4, 4, 2):
            there = [place for place in region if mask[sample, place]]
            codes = {int(result.codes[sample, place, 0]) for place in there}
            if len(codes) == 1 and len(there) > 1:
                mean = x[sample, there].mean(dim=0)
                loss = 0.25 * (mean - vectors[codes.pop()]).square().mean() / len(there)
                slow[sample, there] = loss
            else:
                for place in there:
                    away = x[sample, place] - vectors[int(result.codes[sample, place, 0])]
                    slow[sample, place] = 0.25 * away.square().mean()
    same = (result.losses["commitment"] - slow).abs() < 1e-5
    assert same.float().mean() > 0.95  # but for fine regions whose places have the same codes


# The budget, and the router.


@pytest.mark.parametrize("masked", [False, True])
def test_the_budget_is_of_the_choice_without_noise(masked):
    quantizer = started((4, 6, 2), share=0.3, budget=7.0)
    x = torch.randn(20, 24, DIM)
    mask = torch.rand(20, 24) < 0.3 if masked else None
    loss = quantizer(x, mask).losses["budget"]
    cells, valid = quantizer._cut_with_mask(x if mask is None else torch.where(mask[..., None], x, 0.0), mask)
    fine = quantizer._route(cells, valid)[1] > 0
    there = [valid[b, r].any() for b in range(20) for r in range(6)]
    share = sum(bool(f) for f, t in zip(fine.flatten(), there, strict=True) if t) / sum(map(bool, there))
    expected = torch.full((20, 24), 7 * (share - 0.3) ** 2)
    torch.testing.assert_close(loss, expected if mask is None else expected * mask)
    assert "budget" not in quantizer.eval()(x).losses
    assert "budget" not in started((4, 6, 2), budget=0.0)(x).losses


def test_the_budget_over_two_ranks_is_of_the_joint_batch(monkeypatch):
    quantizer = started((4, 4, 2), share=0.1)
    x = torch.randn(12, 16, DIM)

    def gradient_of(rows):
        loss = quantizer(x[rows]).losses["budget"].mean()
        return loss.detach(), torch.autograd.grad(loss, quantizer.choice.weight)[0]

    alone = gradient_of(slice(None))
    parts = TwoRanks().run(monkeypatch, lambda rank: gradient_of((slice(4), slice(4, None))[rank]))
    for number in range(2):
        torch.testing.assert_close((parts[0][number] + parts[1][number]) / 2, alone[number])


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.25, 0.8, 1.0])
def test_the_budget_draws_the_share(share):
    torch.manual_seed(0)
    quantizer = make(8, share=share)
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)

    def pictures(count):
        return quantizer._lay(torch.randn(count, 16, 4, DIM) * torch.rand(count, 16, 1, 1), 64)

    for _ in range(200):
        quantizer(pictures(32)).losses["budget"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        quantizer.update()
    fine = quantizer._route(*quantizer._cut_with_mask(pictures(200), None))[1] > 0
    assert float(fine.float().mean()) == pytest.approx(share, abs=0.05)


def test_without_noise_training_chooses_as_evaluation_does():
    quantizer, x = started((4, 6, 2), noise=0.0), torch.randn(20, 24, DIM)
    assert torch.equal(quantizer(x).codes, quantizer.encode(x))
    noisy = started((4, 6, 2))
    assert not torch.equal(noisy(x).codes, noisy.encode(x)) and not torch.equal(noisy(x).codes, noisy(x).codes)


def test_the_gradient_of_the_values_reaches_the_router():
    """A region is drawn to be fine where the loss falls along the way from the mean to its places."""
    quantizer = started((4, 4, 2), budget=0.0)
    x, weight = torch.randn(6, 16, DIM), torch.randn(6, 16, DIM)
    noise = torch.randn(6, 4, dtype=torch.float64)
    quantizer.draw_noise = lambda logits: noise
    (quantizer(x).values * weight).sum().backward()
    _, logits = quantizer._route(*quantizer._cut_with_mask(x, None))
    soft = torch.sigmoid(logits + noise)
    total = torch.zeros((), dtype=torch.float64)
    for sample in range(6):
        for number, region in enumerate(places_of(4, 4, 2)):
            mean = x[sample, region].mean(dim=0)
            worth = sum(float((x[sample, place] - mean) @ weight[sample, place]) for place in region)
            total = total + soft[sample, number] * worth
    slow = torch.autograd.grad(total, list(quantizer.parameters()))
    for parameter, wanted in zip(quantizer.parameters(), slow, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_codes_go_where_information_is():
    """Of pictures that are flat but for a quarter of their regions, those regions become fine."""
    torch.manual_seed(0)
    quantizer = make(8, share=0.25, quantizer={**VQ, "size": 64})
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)

    def pictures(count):
        rough = torch.rand(count, 16).argsort(dim=1) < 4
        away = torch.where(rough[..., None, None], torch.randn(count, 16, 4, DIM), 0.1 * torch.randn(count, 16, 4, DIM))
        return quantizer._lay(torch.randn(count, 16, 1, DIM) + away, 64), rough

    for _ in range(300):
        x, _ = pictures(16)
        result = quantizer(x)
        loss = (result.values - x).square().mean() + result.losses["budget"].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        quantizer.update()
    x, rough = pictures(200)
    fine = quantizer._route(*quantizer._cut_with_mask(x, None))[1] > 0
    assert float((fine == rough).float().mean()) > 0.95


# How many codes there are to write.


def write_once(codes, side, columns):
    """The slow way: a bit for every region of several places, then its codes; returns them and the number of bits."""
    written, flags = [], 0
    for region in places_of(len(codes) // columns, columns, side):
        there = [codes[place] for place in region if codes[place][0] >= 0]
        flags += len(there) > 1
        written += there[:1] if len(set(there)) <= 1 else there
    return written, flags


@each_size
def test_rate_is_what_writing_takes(size):
    rows, columns, side = size
    residual = {"kind": "residual", "levels": 2, "quantizer": VQ}
    quantizer = started(size, quantizer=residual).eval()
    x, mask = torch.randn(30, rows * columns, DIM), torch.rand(30, rows * columns) < 0.7
    for codes in (quantizer.encode(x), quantizer.encode(x, mask=mask)):
        number, bits = quantizer.rate(codes)
        for sample in range(30):
            written, flags = write_once([tuple(place) for place in codes[sample].tolist()], side, columns)
            assert (number[sample], bits[sample]) == (2 * len(written), 8 * len(written) + flags)


# Tokenizers.


def tokenizer_with(quantizer, height=16, width=16):
    config = ImageTokenizerConfig(
        name="tiny-regions", height=height, width=width, features=8, blocks=1, latent_dim=DIM, quantizer=quantizer
    )
    torch.manual_seed(0)
    return make_tokenizer(config)


def regions(columns=8, side=2):
    return RegionsConfig(columns=columns, side=side, quantizer=VQConfig(size=16))


def test_a_tokenizer_with_regions_is_one_as_any(tmp_path):
    tokenizer = tokenizer_with(regions())
    pictures = torch.rand(4, 3, 16, 16) * 2 - 1
    codes = tokenizer.encode(pictures).codes
    assert codes.shape == (4, 1, 64) and tokenizer.spec.geometry.num_frames == 64
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.spec == tokenizer.spec and torch.equal(loaded.encode(pictures).codes, codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_rate_of_a_tokenizer():
    tokenizer = tokenizer_with(regions())
    codes = torch.arange(64).remainder(16).repeat(2, 1, 1)
    codes[1] = codes[1].view(4, 2, 4, 2)[:, :1, :, :1].expand(4, 2, 4, 2).reshape(1, 64)
    number, bits = tokenizer.rate(codes)
    assert number.tolist() == [64, 16] and bits.tolist() == [64 * 4 + 16, 16 * 4 + 16]


# Borders.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": 7}, "regions of 2 columns do not divide rows of 7; choose a divisor"),
        ({"columns": 8, "side": 1}, r"side: .* greater than or equal to 2"),
        (
            {"columns": 8, "quantizer": {"kind": "stride", "every": 2, "quantizer": VQ}},
            r"^quantizer\.quantizer: 'stride' quantizes several positions jointly, .* one by one",
        ),
        (
            {"columns": 8, "quantizer": {"kind": "scales", "sizes": [[1, 1]], "quantizer": VQ}},
            r"^quantizer\.quantizer: 'scales' quantizes several positions",
        ),
    ],
)
def test_regions_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("quantizer", "size", "message"),
    [
        (regions(4), (16, 16), r"^quantizer\.columns: 4, but the network makes a grid of 8 x 8; set columns: 8"),
        (
            regions(8, 4),
            (12, 16),
            r"^quantizer\.side: regions of 4 x 4 do not divide a grid of 6 x 8; choose " r"a divisor",
        ),
        (regions(8), (2, 16), r"^quantizer\.side: regions of 2 x 2 do not divide a grid of 1 x 8"),
    ],
)
def test_regions_that_do_not_fit_the_grid_name_the_node(quantizer, size, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer_with(quantizer, *size)


def test_regions_have_no_place_in_sound_or_inside_stride():
    with pytest.raises(ConfigError, match=r"^quantizer\.quantizer: regions need the grid of an image, audio"):
        settings = {"name": "s", "sample_rate": 8000, "hop": 160, "window": 640, "latent_dim": 8}
        make_tokenizer(AudioTokenizerConfig(**settings, quantizer=ResidualConfig(levels=2, quantizer=regions())))
    with pytest.raises(ConfigError, match=r"^quantizer\.quantizer: inside stride there is no grid"):
        tokenizer_with(StrideConfig(every=2, quantizer=regions()))
