"""Beside each fast path of the quantizers a slow, obvious one; and mistakes of others, with tests that show them."""

import json
import math
import random

import make_fsq_golden as fsq_golden
import numpy as np
import pytest
import torch

from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.quantizers.base import usage_stats
from tessera.tokenize.quantizers.codebooks import nearest as kmeans_file
from tessera.tokenize.quantizers.codebooks.nearest import first_by_priority, kmeans, nearest_code
from tessera.tokenize.quantizers.registry import FSQConfig, ResidualConfig, VQConfig, make_quantizer


def nearest_slowly(x, entries):
    codes = []
    for row in x.double():
        distances = [float((row - entry).square().sum()) for entry in entries.double()]
        codes.append(distances.index(min(distances)))
    return codes


@pytest.mark.parametrize("offset", [0.0, 50.0, 1000.0])
@pytest.mark.parametrize("size", [1, 3, 40])
def test_nearest_code(offset, size, monkeypatch):
    """A common offset costs the expanded distance |x|^2 - 2 x.e + |e|^2 its precision: 0.2-2.2 % wrong codes at 50."""
    monkeypatch.setattr(kmeans_file, "SEARCH_ELEMENTS", 100)  # several chunks
    torch.manual_seed(size)
    entries, x = torch.randn(size, 5) + offset, torch.randn(60, 5) + offset
    assert nearest_code(x, entries).tolist() == nearest_slowly(x, entries)
    assert nearest_code(x[:0], entries).shape == (0,)


def test_near_ties_do_not_depend_on_the_other_rows():
    """Latents half-way between two codes, but for the last bits: a bare matrix product decides by the batch."""
    torch.manual_seed(0)
    entries = torch.randn(200, 64)
    pairs = torch.randint(200, (400, 2))
    x = entries[pairs].mean(dim=1) + 1e-7 * torch.randn(400, 64)
    codes = nearest_code(x, entries)
    for size in (1, 2, 3, 7, 50, 399):
        start = 0 if size > 7 else 390
        assert torch.equal(codes[start : start + size], nearest_code(x[start : start + size], entries))
    assert codes[:40].tolist() == nearest_slowly(x[:40], entries)


def test_equal_codes_give_the_lower_number():
    entries = torch.randn(5, 4).repeat(2, 1)
    assert nearest_code(entries, entries).tolist() == [0, 1, 2, 3, 4] * 2


def test_kmeans():
    torch.manual_seed(0)
    data = torch.randn(150, 3)
    centres, sizes = kmeans(data, 7, iterations=4)
    slow = data[:7].tolist()
    for _ in range(4):
        groups = [[] for _ in slow]
        for row in data.tolist():
            groups[min(range(7), key=lambda code: math.dist(row, slow[code]))].append(row)
        slow = [[sum(axis) / len(group) for axis in zip(*group, strict=True)] for group in groups]
    torch.testing.assert_close(centres, torch.tensor(slow))
    assert sizes.tolist() == [len(group) for group in groups]


def test_kmeans_with_fewer_vectors_than_codes():
    data = torch.tensor([[1.0], [1.0], [5.0]])
    centres, sizes = kmeans(data, 4, iterations=3)
    assert centres.flatten().tolist() == [1, 5, 1, 5] and sizes.tolist() == [2, 1, 0, 0]


def test_samples_do_not_depend_on_the_order():
    torch.manual_seed(0)
    x = torch.randn(500, 6)
    x[7] = 0.0
    chosen = first_by_priority(x, 3, 50)
    assert torch.equal(chosen, first_by_priority(x[torch.randperm(500)], 3, 50))
    halves = torch.cat([first_by_priority(part, 3, 50) for part in x.split(250)])  # two processes, as in the all-reduce
    assert torch.equal(chosen, first_by_priority(halves + -0.0, 3, 50))
    assert not torch.equal(chosen, first_by_priority(x, 4, 50))


def test_samples_are_fair():
    """Each row is drawn about as often as any other, whatever its value."""
    x = torch.arange(64.0)[:, None].repeat(1, 2)
    drawn = torch.cat([first_by_priority(x, salt, 16)[:, 0] for salt in range(400)])
    counts = torch.bincount(drawn.long(), minlength=64).float()  # 100 expected, deviation 8.7
    assert counts.min() > 60 and counts.max() < 140


def test_moving_averages():
    torch.manual_seed(0)
    quantizer = make_quantizer(VQConfig(size=5, decay=0.8, revive_below=0, kmeans_init=False), 3)
    sums, counts = quantizer.codebook.sum.double().tolist(), [1.0] * 5
    for _ in range(6):
        used, added = [0] * 5, [[0.0] * 3 for _ in range(5)]
        for _ in range(2):  # two backward passes an update
            x = torch.randn(20, 3)
            entries = torch.tensor(sums) / torch.tensor(counts)[:, None]
            for row, code in zip(x.tolist(), nearest_slowly(x, entries), strict=True):
                used[code] += 1
                added[code] = [a + b for a, b in zip(added[code], row, strict=True)]
            quantizer(x)
        quantizer.update()
        counts = [0.8 * count + 0.2 * number for count, number in zip(counts, used, strict=True)]
        sums = [
            [0.8 * a + 0.2 * b for a, b in zip(old, new, strict=True)] for old, new in zip(sums, added, strict=True)
        ]
    torch.testing.assert_close(quantizer.codebook.sum, torch.tensor(sums))
    torch.testing.assert_close(quantizer.codebook.count, torch.tensor(counts))


@pytest.mark.parametrize("levels", [1, 3, 6])
def test_residual(levels):
    torch.manual_seed(levels)
    quantizer = make_quantizer(ResidualConfig(levels=levels, quantizer=VQConfig(size=9)), 4).eval()
    x = torch.randn(15, 4)
    rest, codes = x, []
    for table in quantizer.vectors():
        codes.append(nearest_slowly(rest, table))
        rest = rest - table[codes[-1]]
    result = quantizer(x)
    assert result.codes.T.tolist() == codes
    torch.testing.assert_close(result.values, x - rest)
    wanted = torch.zeros(15)
    rest = x
    for level, table in enumerate(quantizer.vectors()):
        rest = rest - table[codes[level]]
        wanted += 0.25 * rest.square().mean(dim=-1)
    torch.testing.assert_close(result.losses["commitment"], wanted)


def fsq_slowly(row, levels):
    """One vector: cut tanh into equal parts, join the digits with Python's integers, spread the values over [-1, 1]."""
    code, values, radix = 0, [], 1
    for number, size in zip(row, levels, strict=True):
        digit = min(size - 1, int((math.tanh(number) + 1) / 2 * size))
        code += digit * radix
        radix *= size
        values.append(-1 + 2 * digit / (size - 1))
    return code, values


@pytest.mark.parametrize("levels", [(2,), (3, 2), (8, 5, 5, 5), (7, 2, 4, 3), (2,) * 62, (64,) * 10])
def test_fsq(levels):
    """Up to 62 bits. Sums of float32 lose codes above 2^24 (69 % wrong at 27 bits), bf16 above 2^8: trap 7."""
    torch.manual_seed(len(levels))
    quantizer = make_quantizer(FSQConfig(levels=levels), len(levels)).eval()
    for scale in (0.3, 1.0, 100.0):
        x = (scale * torch.randn(50, len(levels))).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = quantizer(x)
        for row, code, values in zip(x.tolist(), result.codes[:, 0].tolist(), result.values.tolist(), strict=True):
            wanted_code, wanted_values = fsq_slowly(row, levels)
            assert code == wanted_code
            assert values == pytest.approx(wanted_values, abs=1e-6)
    assert math.prod(levels) == quantizer.cardinalities[0]


@pytest.mark.parametrize("levels", [(2, 2, 2), (4, 3, 2), (8, 6), (5, 5)])
def test_every_fsq_code_is_reached_and_stays(levels):
    quantizer = make_quantizer(FSQConfig(levels=levels), len(levels)).eval()
    vectors = quantizer.vectors()[0]
    codes = torch.arange(math.prod(levels))[:, None]
    assert len(vectors.unique(dim=0)) == len(codes)
    assert vectors.min() == -1 and vectors.max() == 1
    torch.testing.assert_close(vectors.flip(0), -vectors)  # symmetric, even sizes too
    inner = torch.atanh(vectors * torch.tensor([(size - 1) / size for size in levels]))  # the middles of the parts
    assert torch.equal(quantizer.encode(inner), codes)
    assert torch.equal(quantizer.encode(1e6 * torch.randn(100, len(levels))) < len(codes), torch.ones(100, 1).bool())


@pytest.mark.parametrize("size", [2, 4, 8])
def test_even_fsq_sizes_are_balanced_around_zero(size):
    """The paper's shift puts the boundary of two values at z = -3.8: a fresh encoder gives one code only."""
    quantizer = make_quantizer(FSQConfig(levels=(size,)), 1)
    codes = quantizer.encode(0.1 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)))
    counts = torch.bincount(codes[:, 0], minlength=size)
    assert counts[size // 2 - 1] > 800 and counts[size // 2] > 800


def test_fsq_of_infinite_latents_stays_in_range():
    quantizer = make_quantizer(FSQConfig(levels=(4, 4)), 2)
    codes = quantizer.encode(torch.tensor([[math.inf, -math.inf], [math.nan, 0.0]]))
    assert codes[0].item() == 3 and 0 <= codes[1].item() < 16


def test_residual_fsq_gets_finer():
    torch.manual_seed(0)
    quantizer = make_quantizer(ResidualConfig(levels=3, quantizer=FSQConfig(levels=(5,) * 4)), 4).eval()
    x = 0.8 * (2 * torch.rand(500, 4) - 1)
    errors = [(quantizer.decode(quantizer.encode(x, levels)) - x).square().mean() for levels in (1, 2, 3)]
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1]


def test_an_fsq_too_large_for_a_table_says_so():
    quantizer = make_quantizer(FSQConfig(levels=(64,) * 5), 5)
    with pytest.raises(ValueError, match=r"an fsq of 1073741824 codes has no table"):
        quantizer.vectors()
    assert quantizer(torch.randn(3, 5)).stats["usage"].item() == pytest.approx(3 / 2**30)


def test_usage_stats():
    random.seed(0)
    columns = [[random.choice([-1, 0, 3, 3, 3, 9]) for _ in range(200)], [7] * 200, [-1] * 200]
    stats = usage_stats(torch.tensor(columns).T, (10, 10_000, 10))
    for level, (column, size) in enumerate(zip(columns, (10, 10_000, 10), strict=True)):
        real = [code for code in column if code >= 0]
        shares = [real.count(code) / len(real) for code in set(real)]
        entropy = -sum(share * math.log(share) for share in shares)
        assert stats["perplexity"][level].item() == pytest.approx(math.exp(entropy), rel=1e-5)
        assert stats["usage"][level].item() == pytest.approx(len(shares) / size, rel=1e-5)
    empty = usage_stats(torch.zeros(0, 1, dtype=torch.long), (10**6,))
    assert empty["usage"].tolist() == [0]


@pytest.mark.parametrize("bits", [10, 18])
def test_entropy_has_no_cap(bits):
    """Trap 6: log(p + 1e-5) or clamp(1e-5) caps the entropy at 11.5 nats, though 2^18 codes in even use have 12.48."""
    perplexity = usage_stats(torch.arange(1 << bits)[:, None], (1 << bits,))["perplexity"].item()
    assert math.log(perplexity) == pytest.approx(bits * math.log(2), rel=1e-5)


def test_configs_refuse_what_cannot_be():
    config = check_config({"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 8}}, ResidualConfig)
    assert config.quantizer == VQConfig(size=8)
    with pytest.raises(ConfigError, match=r"more than 2\^62"):
        check_config({"kind": "fsq", "levels": [2] * 63}, FSQConfig)
    with pytest.raises(ConfigError, match="decay: Input should be less than 1"):
        check_config({"kind": "vq", "size": 8, "decay": 1.0}, VQConfig)
    with pytest.raises(ConfigError, match="did you mean 'level_dropout'"):
        check_config({"levels": 2, "leveldropout": 0.1, "quantizer": {"kind": "vq", "size": 8}}, ResidualConfig)


def published_fsq_slowly(row, levels, rounding):
    """One vector, number by number in NumPy's float32: the paper's appendix, or vector-quantize-pytorch."""
    code, values, radix, one = 0, [], 1, np.float32
    for number, size in zip(row, levels, strict=True):
        half = one((size - 1) * (1 - 1e-3 if rounding == "paper" else 1 + 1e-3) / 2)
        offset = one(0.5 if size % 2 == 0 else 0.0)
        shift = np.tan(offset / half) if rounding == "paper" else np.arctanh(offset / half)
        whole = np.round(np.tanh(one(number) + shift) * half - offset)
        code += (int(whole) + size // 2) * radix
        radix *= size
        values.append(float(whole / one(size // 2)))
    return code, values


@pytest.mark.sample(10)
@pytest.mark.parametrize("rounding", ["paper", "vq_pytorch"])
@pytest.mark.parametrize("levels", [*fsq_golden.LEVELS, (2,), (2, 3, 2), (1000,)])
def test_published_fsq(levels, rounding):
    quantizer = make_quantizer(FSQConfig(levels=levels, rounding=rounding), len(levels)).eval()
    x = fsq_golden.latents(levels)
    result = quantizer(x)
    slow = [published_fsq_slowly(row, levels, rounding) for row in x.tolist()]
    assert result.codes[:, 0].tolist() == [code for code, _ in slow]
    assert result.values.tolist() == [values for _, values in slow]
    assert math.prod(levels) > 1 << 22 or torch.equal(quantizer.vectors()[0][result.codes[:, 0]], result.values)
    extreme = quantizer.encode(torch.tensor([[-math.inf] * len(levels), [math.inf] * len(levels)]))
    assert extreme[:, 0].tolist() == [0, math.prod(levels) - 1]
    if levels != (3,):  # where both cut tanh into three
        assert not torch.equal(result.codes, make_quantizer(FSQConfig(levels=levels), len(levels)).encode(x))


def test_fsq_of_vector_quantize_pytorch():
    """Bit for bit what that package gives (`make_fsq_golden.py`)."""
    golden = json.loads(fsq_golden.FILE.read_text())
    assert list(golden) == [",".join(map(str, levels)) for levels in fsq_golden.LEVELS]
    for levels, wanted in zip(fsq_golden.LEVELS, golden.values(), strict=True):
        quantizer = make_quantizer(FSQConfig(levels=levels, rounding="vq_pytorch"), len(levels)).eval()
        result = quantizer(fsq_golden.latents(levels))
        assert result.codes[:, 0].tolist() == wanted["codes"] and result.values.tolist() == wanted["values"]


def test_the_published_fsq_leads_its_own_gradient_to_the_projection():
    torch.manual_seed(0)
    quantizer = make_quantizer(FSQConfig(levels=(8, 5), rounding="vq_pytorch"), 4)
    x = torch.randn(7, 4)
    quantizer(x).values.square().sum().backward()
    half, offset, shift = quantizer.bounds
    z = quantizer.project_in(x)
    values = quantizer.project_out(((z + shift).tanh() * half - offset) / torch.tensor([4, 2]))
    rounded = quantizer(x).values.detach()
    (wanted,) = torch.autograd.grad((2 * rounded * values).sum(), [quantizer.project_in.weight])
    torch.testing.assert_close(quantizer.project_in.weight.grad, wanted)


def test_fsq_files_of_before_the_choice_of_rounding_mean_the_same():
    assert "rounding" not in FSQConfig(levels=(4,)).model_dump()
    assert FSQConfig(levels=(4,), rounding="paper").model_dump()["rounding"] == "paper"
    with pytest.raises(ConfigError, match="rounding 'paper' supports at most 1000 values per dimension"):
        check_config({"kind": "fsq", "levels": [1001], "rounding": "paper"}, FSQConfig)


def test_product_search_and_its_soft_choice():
    """IBQ (arXiv:2412.02692): the largest dot product, and a gradient for every code through softmax(x e / T)."""
    torch.manual_seed(0)
    config = VQConfig(size=7, update="index", search="product", index_temperature=0.5, kmeans_init=False)
    quantizer = make_quantizer(config, 3)
    x, weights = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    with torch.no_grad():
        quantizer.codebook.weight[:2] *= 3  # now the nearest code is often another one
    table = quantizer.codebook.weight.detach()
    slow = [[max(range(7), key=lambda code: float(row @ table[code])) for row in sample] for sample in x]
    assert quantizer.train()(x).codes[..., 0].tolist() == slow == quantizer.eval().encode(x)[..., 0].tolist()
    assert slow != nearest_code(x.flatten(0, 1), table).view(2, 5).tolist()
    quantizer.train()
    vectors = quantizer.quantize(x, None).vectors
    (gradient,) = torch.autograd.grad((vectors * weights).sum(), quantizer.codebook.weight)
    own = table.clone().requires_grad_()
    soft = torch.softmax(x @ own.T / 0.5, dim=-1) @ own.detach()
    ((own[torch.tensor(slow)] + soft) * weights).sum().backward()
    torch.testing.assert_close(gradient, own.grad)
    assert bool((gradient != 0).any(dim=1).all())
