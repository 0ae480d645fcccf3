"""Filters and draws against a slow reference with Python loops; distributions against chi-square."""

import math
from dataclasses import replace

import pytest
import torch

from tessera.configs.schema import check_config
from tessera.generate.sampling import filters
from tessera.generate.sampling.counter_rng import uniform
from tessera.generate.sampling.filters import drawable, make_filters, sample
from tessera.lm.generation_config import GenerationConfig

SETTINGS = [
    GenerationConfig(),
    GenerationConfig(temperature=0.0),
    GenerationConfig(temperature=0.7),
    GenerationConfig(top_k=3),
    GenerationConfig(top_k=1, temperature=2.0),
    GenerationConfig(top_p=0.6),
    GenerationConfig(top_p=1e-9),
    GenerationConfig(min_p=0.2),
    GenerationConfig(min_p=1.0),
    GenerationConfig(temperature=1.3, top_k=5, top_p=0.8, min_p=0.05),
    GenerationConfig(temperature=[0.0, 0.5, 2.0], top_k=[0, 2, 4], top_p=[1.0, 0.9, 0.5], min_p=[0.0, 0.3, 0.1]),
]


def at(value, k):
    return value[k] if isinstance(value, tuple) else value


def slow_distribution(logits: list[float], s: GenerationConfig, k: int) -> list[float]:
    """Probabilities after all filters, one list at a time."""
    temperature, top_k, top_p, min_p = at(s.temperature, k), at(s.top_k, k), at(s.top_p, k), at(s.min_p, k)
    if temperature == 0:
        best = max(range(len(logits)), key=lambda i: (logits[i], -i))
        return [float(i == best) for i in range(len(logits))]
    largest = max(logits)
    weights = [math.exp((x - largest) / temperature) for x in logits]
    p = {i: w / sum(weights) for i, w in enumerate(weights) if w > 0}
    ranked = sorted(p, key=lambda i: (-p[i], i))
    if top_k:
        ranked = ranked[:top_k]
    total = sum(p[i] for i in ranked)
    nucleus, mass = [], 0.0
    for i in ranked:
        if nucleus and mass >= top_p * total:
            break
        nucleus.append(i)
        mass += p[i]
    kept = [i for i in nucleus if p[i] >= min_p * p[ranked[0]]]
    total = sum(p[i] for i in kept)
    return [p[i] / total if i in kept else 0.0 for i in range(len(logits))]


def slow_draw(distribution: list[float], u: float) -> int:
    mass = 0.0
    for i, p in enumerate(distribution):
        mass += p
        if mass > u and p > 0:
            return i
    return max(i for i, p in enumerate(distribution) if p > 0)


@pytest.mark.sample(15)
@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
@pytest.mark.parametrize("V", [1, 2, 9])
def test_equals_the_slow_reference(settings, V):
    generator = torch.Generator().manual_seed(V)
    logits = torch.randn(6, 3, V, generator=generator) * 3
    if V > 2:
        logits[0, :, 4:] = -math.inf
    u = uniform(torch.arange(6), 0, 3)
    found = sample(logits, u, make_filters(settings, 3))
    for b in range(6):
        for k in range(3):
            expected = slow_draw(slow_distribution(logits[b, k].tolist(), settings, k), float(u[b, k]))
            assert found[b, k] == expected, (b, k)


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_distribution(settings):
    """Many seeds draw ids in the proportions of the slow distribution (chi-square, tail probability about 1e-4)."""
    n, K, V = 20_000, 3, 8
    logits = torch.randn(1, K, V, generator=torch.Generator().manual_seed(1))
    ids = sample(logits.expand(n, K, V), uniform(torch.arange(n), 5, K), make_filters(settings, K))
    for k in range(K):
        expected = torch.tensor(slow_distribution(logits[0, k].double().tolist(), settings, k)) * n
        counts = torch.bincount(ids[:, k], minlength=V)
        assert (counts[expected == 0] == 0).all()
        live = expected > 0
        chi = ((counts[live] - expected[live]) ** 2 / expected[live]).sum()
        assert chi < 32, (k, counts.tolist(), expected.tolist())


def test_extreme_uniforms_draw_possible_ids():
    logits = torch.tensor([[[-math.inf, 0.0, 1.0, -math.inf]]])
    filters = make_filters(GenerationConfig(), 1)
    for u, expected in ((2.0**-53, 1), (1 - 2.0**-53, 2), (1.0, 2)):
        assert sample(logits, torch.tensor([[u]], dtype=torch.float64), filters).item() == expected


def test_a_row_does_not_depend_on_the_batch():
    logits, u = torch.randn(32, 4, 50), uniform(torch.arange(32), 0, 4)
    filters = make_filters(GenerationConfig(top_k=20, top_p=0.9), 4)
    whole = sample(logits, u, filters)
    assert all(torch.equal(sample(logits[i : i + 1], u[i : i + 1], filters)[0], whole[i]) for i in range(32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": [1.0, 1.0]}, "temperature has 2 values but the model has 3 codebooks"),
        ({"temperature": -1.0}, "temperature: must be 0, or from 1e-30 to 1e9, found -1.0"),
        ({"top_k": -2}, "top_k: must be a whole number from 0 to 2.40, found -2"),
        ({"top_k": 2.5}, "top_k: Input should be a valid integer"),
        ({"top_p": 0.0}, "top_p: must be above 0 and at most 1, found 0.0"),
        ({"min_p": 1.5}, "min_p: must be from 0 to 1, found 1.5"),
        ({"temperature": float("nan")}, "temperature: Input should be a finite number"),
        ({"top_p": "x"}, "top_p: Input should be a valid number .found 'x'"),
    ],
    ids=repr,
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_filters(check_config(settings, GenerationConfig), 3)


def test_top_k_alone_keeps_what_sorting_keeps():
    """With equal probabilities, ids that are forbidden, and codebooks without a limit."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        logits = (2 * torch.randn(2, 3, 23, generator=generator)).round()
        logits[..., 1:][torch.rand(2, 3, 22, generator=generator) < 0.3] = float("-inf")
        top_k = torch.randint(0, 26, (3,), generator=generator).tolist()
        filters = make_filters(GenerationConfig(top_k=top_k), 3)
        assert not filters.sorts
        uniforms = torch.rand(2, 3, generator=generator, dtype=torch.float64)
        wanted = sample(logits, uniforms, replace(filters, sorts=True))
        assert torch.equal(sample(logits, uniforms, filters), wanted)


EXTREMES = [0.0, -0.0, 1.0, -1e4, 6e4, 3e38, -3e38, 1e300, -1e300, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_any_logits_give_an_id_that_exists_and_is_allowed(dtype):
    """Whatever stands in the logits, an id from 0 to V - 1; where there is anything to draw from, one that is."""
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.tensor([2.0**-53, 0.3, 0.5, 1 - 2.0**-53], dtype=torch.float64)[:, None]
    settings = [
        {"temperature": t, "top_k": k, "top_p": p, "min_p": m}
        for t, k, p, m in [
            (0.0, 0, 1.0, 0.0), (1e-30, 0, 1.0, 0.0), (1e-29, 2, 1.0, 0.0), (1e-30, 0, 0.9, 0.0), (1.0, 0, 1.0, 0.0),
            (1.0, 0, 1e-320, 0.0), (1.0, 3, 1.0, 1.0), (1.0, 1 << 40, 0.5, 1.0), (1e9, 0, 1.0, 1.0), (1e9, 1, 1.0, 0.0),
        ]
    ]  # fmt: skip
    filters = [make_filters(GenerationConfig(**one), 1) for one in settings]
    for _ in range(60):
        V = int(torch.randint(1, 6, (), generator=generator))
        picked = torch.randint(len(EXTREMES), (V,), generator=generator).tolist()
        logits = torch.tensor([EXTREMES[i] for i in picked], dtype=torch.float64).to(dtype).expand(4, 1, V)
        for one in filters:
            ids = sample(logits, uniforms, one)
            assert bool(((ids >= 0) & (ids < V)).all())
            if bool(drawable(logits)):
                assert bool((logits.gather(2, ids[..., None]) > -math.inf).all())
        row = logits[0, 0].tolist()
        assert bool(drawable(logits)) == (not any(map(math.isnan, row)) and math.isfinite(max(row)))


def test_a_tiny_temperature_takes_the_likeliest():
    logits, half = torch.tensor([[[3.0, 5.0, 1.0]]]), torch.tensor([[0.999]], dtype=torch.float64)
    for temperature in (1e-30, 1e-29, 1e-20):
        assert sample(logits, half, make_filters(GenerationConfig(temperature=temperature), 1)).item() == 1


def test_sums_that_do_not_rise_give_no_forbidden_id():
    """On a GPU sums of another order may fall by a rounding error: a weight of 0 must not be chosen there."""
    weights = torch.tensor([[[0.5, 0.0, 0.5, 0.0, 0.0]]], dtype=torch.float64)
    wobbling = torch.tensor([[[0.5, 0.5 + 1e-16, 1.0, 1.0 - 1e-16, 1.0]]], dtype=torch.float64)
    for target, expected in ((0.4, 0), (0.5, 2), (1.0 - 1.5e-16, 2), (1.0, 5)):
        reached = torch.tensor([[[target]]], dtype=torch.float64)
        assert filters._first_above(wobbling, reached, weights).item() == expected
