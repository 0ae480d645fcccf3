"""Caches of every kind against slow references, and their laws."""

import pytest
import torch
from small_models import CASES, make_codes, make_conditions, make_config, make_lm

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.attention.masks import causal_mask
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.heads.registry import ParallelHeadConfig
from tessera.lm.kv_cache.base import CacheShape, KVCache
from tessera.lm.kv_cache.config import RingCacheConfig
from tessera.lm.kv_cache.quantized import QuantizedStore, dequantize, quantize
from tessera.lm.kv_cache.registry import CACHES, make_cache, read_cache
from tessera.lm.layers.input_embedding import EmbeddingInputConfig
from tessera.lm.ops.rotary import rotary_table, rotate

# Every condition with rows whose prefixes are padded, and grouped heads.
CHOSEN = [case for i, case in enumerate(CASES.values()) if i % 11 == 1 or case[1] == "label and text"]
CHOSEN += [case for case in CASES.values() if case[:2] == ("delay", "codes prefix")]
PLAIN = {"head": ParallelHeadConfig()}  # a step is read before the codes it predicts are known
SOME = [(*case[:3], EmbeddingInputConfig(), *case[4:6], case[6] | PLAIN) for case in CHOSEN]
some_cases = pytest.mark.parametrize("case", SOME, ids=[f"{case[0]}, {case[1]}, {case[2].kind}" for case in SOME])


def close(found, expected):
    # one step and a whole sequence go through kernels that sum in different orders
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def read(lm, output):
    """What the model reads to predict the targets, [B, K, S]."""
    return torch.cat([lm.start_ids(len(output.targets))[..., None], output.targets[:, :, :-1]], dim=2)


def step_through(lm, ids, conditions, cache=None, sizes=None):
    """Logits [B, K, S, V'] of reading ids [B, K, S] in pieces of the given sizes, and the state."""
    B, _, S = ids.shape
    state = lm.start(conditions, capacity=S, num_rows=B, cache=cache)
    pieces = ids.split(sizes or [1] * S, dim=2)
    return torch.cat([lm.step(state, piece) for piece in pieces], dim=2), state


def slow_mask(P, S, real, window):
    """bool [B, P + S, P + S], pair by pair."""
    mask = torch.zeros(len(real), P + S, P + S, dtype=torch.bool)
    for b, row in enumerate(real):
        for i in range(P + S):
            for j in range(i + 1):
                near = window is None or j < P or i - j < window
                mask[b, i, j] = i == j or (near and (j >= P or row[j]))
    return mask


@pytest.mark.parametrize("window", [None, 1, 3])
def test_causal_mask(window):
    real = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
    expected = slow_mask(3, 5, real.tolist(), window)
    positions = torch.arange(8)
    assert causal_mask(positions, positions, 3, real, window)[:, 0].equal(expected)
    assert causal_mask(positions[5:], positions, 3, real, window)[:, 0].equal(expected[:, 5:])
    assert causal_mask(positions, positions, 3, None, window)[0, 0].equal(expected[0])
    empty = causal_mask(positions, torch.cat([positions, torch.tensor([-1])]), 3, real, window)[:, 0]
    assert empty[:, :, :8].equal(expected) and not empty[:, :, 8].any()


# A model with a window


@pytest.mark.sample(3)
@some_cases
@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_ring_equals_the_full_forward_of_a_model_with_a_window(case, window):
    config = make_config(case, window=window)
    lm, codes, conditions = make_lm(config), make_codes(4, 6), make_conditions(config, 4)
    with torch.no_grad():
        output = lm(codes, None, conditions)
    ids = read(lm, output)
    S = ids.shape[2]
    logits, state = step_through(lm, ids, conditions)
    close(logits, output.logits)
    assert state.cache.kind == "ring" and state.cache.length == state.prefix_length + S
    for sizes in ([2, 1, S - 3], [S], [S - 1, 1]):
        close(step_through(lm, ids, conditions, sizes=sizes)[0], output.logits)
    close(step_through(lm, ids, conditions, "static")[0], output.logits)
    close(step_through(lm, ids, conditions, "static", [3, S - 3])[0], output.logits)


def test_a_window_hides_what_is_further_back():
    """In one layer a code changes the steps of its window and no others; the conditions change all."""
    config = make_config(("parallel", "label prefix", *SOME[0][2:]), layers=1, window=3)
    lm, codes, conditions = make_lm(config), make_codes(1, 9), make_conditions(config, 1)
    before = lm(codes, None, conditions).logits
    changed = codes.clone()
    changed[:, 0, 2] = (changed[:, 0, 2] + 1) % 7  # read by step 3, seen by steps 3 to 5
    after = lm(changed, None, conditions).logits
    differs = (after != before).flatten(3).any(-1).any(1)[0]
    assert differs.tolist() == [3 <= s <= 5 for s in range(before.shape[2])]
    other = lm(codes, None, conditions.null()).logits
    assert bool((other != before).any(-1).any(1).all())


def test_a_wide_window_changes_nothing():
    config = make_config(SOME[0])
    lm, codes, conditions = make_lm(config), make_codes(4, 6), make_conditions(config, 4)
    wide = make_lm(config.model_copy(update={"window": 100}))
    assert wide(codes, None, conditions).logits.equal(lm(codes, None, conditions).logits)


@pytest.mark.parametrize(("window", "sinks"), [(1, 2), (3, 0), (3, 2), (50, 1)])
def test_sinks_are_kept_in_a_model_without_a_window(window, sinks):
    """A ring in one layer equals attention under the mask of prefix, first steps and window."""
    config = make_config(("delay", "label and text", *SOME[0][2:]), layers=1)
    lm, codes, conditions = make_lm(config), make_codes(4, 6), make_conditions(config, 4)
    with torch.no_grad():
        ids = read(lm, lm(codes, None, conditions))
        S = ids.shape[2]
        joined = lm.conditions(conditions)
        P = joined.prefix.shape[1]
        mask = slow_mask(
            P + sinks, S - sinks, torch.nn.functional.pad(joined.prefix_mask, (0, sinks), value=True), window
        )
        table = lm.positions.table(torch.arange(S), None, P, joined.prefix_mask)
        x = torch.cat([joined.prefix, lm.input(ids)], dim=1)
        hidden = lm.transformer(x, table, mask=mask[:, None])[:, P:]
        expected = lm.head(hidden).transpose(1, 2)
    cache = RingCacheConfig(window=window, sinks=sinks)
    for sizes in (None, [3, 1, S - 4]):
        logits, state = step_through(lm, ids, conditions, cache, sizes)
        close(logits, expected)
    assert state.cache.keys.shape[3] == P + min(sinks, S) + min(window, S)


def test_a_ring_does_not_grow_with_the_steps():
    config = make_config(SOME[0], window=3)
    lm, conditions = make_lm(config), make_conditions(config, 2)
    few, many = (lm.start(conditions, capacity, 2) for capacity in (10, 10000))
    assert few.cache.bytes == many.cache.bytes
    static = lm.start(conditions, 10000, 2, cache="static")
    assert many.cache.bytes < 0.01 * static.cache.bytes


# Counting in a tensor, as a compiled step does


@pytest.mark.sample(3)
@some_cases
@pytest.mark.parametrize("cache", ["static", {"kind": "ring", "window": 3}])
def test_a_position_in_a_tensor_equals_a_number(case, cache):
    config = make_config(case)
    lm, codes, conditions = make_lm(config), make_codes(4, 6), make_conditions(config, 4)
    ids = read(lm, lm(codes, None, conditions))
    expected, _ = step_through(lm, ids, conditions, cache)
    state = lm.start(conditions, capacity=ids.shape[2], num_rows=4, cache=cache)
    first = lm.step(state, ids[:, :, :2])
    state.cache.position = torch.tensor(state.cache.length)
    rest, places = [], set()
    for s in range(2, ids.shape[2]):
        rest.append(lm.step(state, ids[:, :, s]))
        places.add((state.cache.keys.data_ptr(), state.cache.position.data_ptr()))
    close(torch.cat([first, torch.stack(rest, dim=2)], dim=2), expected)
    assert len(places) == 1, "in place"
    assert int(state.cache.position) == state.prefix_length + ids.shape[2]
    state.cache.position = None
    assert state.cache.length == state.prefix_length + ids.shape[2]


def test_several_steps_by_a_tensor_and_back():
    lm, codes = make_lm(make_config()), make_codes(2, 6)
    ids = read(lm, lm(codes))
    expected, _ = step_through(lm, ids, None)
    state = lm.start(capacity=ids.shape[2], num_rows=2)
    state.cache.position = torch.tensor(0)
    close(lm.step(state, ids[:, :, :4]), expected[:, :, :4])
    state.cache.rewind(2)
    state.step = 2
    close(lm.step(state, ids[:, :, 2:5]), expected[:, :, 2:5])
    state.cache.position = None
    close(lm.step(state, ids[:, :, 5]), expected[:, :, 5])
    state.cache.rewind(1)
    state.step = 1
    close(lm.step(state, ids[:, :, 1:3]), expected[:, :, 1:3])


# Every kind

KINDS = {
    "static": "static",
    "ring": {"kind": "ring", "window": 3},
    "int8": {"kind": "int8", "group": 2, "recent": 1},
    "int4": {"kind": "int4", "group": 4, "recent": 1, "outliers": 1},
    "evict": {"kind": "evict", "budget": 4, "recent": 1},
}
every_kind = pytest.mark.parametrize("cache", KINDS.values(), ids=KINDS.keys())


def test_every_kind_is_tried():
    assert {read_cache(cache).kind for cache in KINDS.values()} == set(CACHES)


@pytest.mark.sample(2)
@every_kind
def test_rows_are_independent(cache):
    config = make_config(("delay", "label and text", *SOME[0][2:]))
    # float64: the kernels' rounding depends on the batch, and in float32 that flips a near-tie of codes
    lm, codes, conditions = make_lm(config).double(), make_codes(4, 6), make_conditions(config, 4)
    ids = read(lm, lm(codes, None, conditions))
    whole, _ = step_through(lm, ids, conditions, cache)
    other = ids.clone()
    other[1:] = ids[1:].flip(2)
    changed, _ = step_through(lm, other, conditions, cache)
    assert changed[0].equal(whole[0]) and not changed[1].equal(whole[1])
    for b in range(4):
        alone, _ = step_through(lm, ids[b : b + 1], conditions.rows(slice(b, b + 1)), cache)
        close(alone[0], whole[b])


def storage(cache):
    """Addresses and sizes of the tensors a cache keeps."""
    held = [value for name, value in vars(cache).items() if not name.startswith("_")]
    tensors = [x for x in held if isinstance(x, torch.Tensor)]
    tensors += [x for shelf in held if isinstance(shelf, QuantizedStore) for x in shelf.storage]
    return {x.data_ptr(): x.nbytes for x in tensors if x.nbytes}


@every_kind
def test_steps_do_not_allocate_again(cache):
    lm = make_lm(make_config())
    state = lm.start(capacity=6, num_rows=2, cache=cache)
    before, where = state.cache.bytes, storage(state.cache)
    for _ in range(6):
        lm.step(state, lm.start_ids(2))
    assert state.cache.bytes == before and storage(state.cache) == where
    assert before == sum(where.values()) and state.cache.num_rows == 2
    if cache == "static":
        assert before == 2 * 2 * 2 * 4 * 8 * 6 * 4


def test_only_the_static_kind_takes_steps_back():
    lm = make_lm(make_config())
    for name, cache in KINDS.items():
        state = lm.start(capacity=3, num_rows=1, cache=cache)
        lm.step(state, lm.start_ids(1))
        if name != "static":
            with pytest.raises(
                ValueError, match=f"cache kind '{name}' cannot roll back steps; use cache kind 'static'"
            ):
                state.cache.rewind(0)


def test_choices():
    assert read_cache(None).kind == "static" and read_cache(None, window=5).kind == "ring"
    assert read_cache("ring").kind == "ring"
    text, mapping = "{kind: ring, window: 5, sinks: 4}", {"kind": "ring", "window": 5, "sinks": 4}
    assert read_cache(text) == read_cache(mapping) == RingCacheConfig(window=5, sinks=4)
    with pytest.raises(ConfigError, match="'rung'"):
        read_cache("rung")
    with pytest.raises(ConfigError, match="windw: unknown key; did you mean 'window'"):
        read_cache({"kind": "ring", "windw": 5})
    for read in (read_cache, lambda choice: check_config({"cache": choice}, GenerationConfig, "generate")):
        with pytest.raises(ConfigError, match="^generate: cache: not valid YAML"):
            read("{kind: ring")


def test_a_ring_that_does_not_fit_the_model():
    shape = {"layers": 1, "num_rows": 1, "kv_heads": 1, "head_width": 4, "num_steps": 8}
    shape |= {"dtype": torch.float32, "device": torch.device("cpu")}
    with pytest.raises(ValueError, match="needs a window: the model was trained without one; set window: STEPS"):
        make_cache("ring", CacheShape(**shape))
    with pytest.raises(ValueError, match="has window 6 and sinks 0, but the model was trained with window 5"):
        make_cache({"kind": "ring", "window": 6}, CacheShape(**shape, window=5))
    with pytest.raises(ValueError, match="has window 5 and sinks 1, but the model was trained with window 5"):
        make_cache({"kind": "ring", "sinks": 1}, CacheShape(**shape, window=5))
    assert isinstance(make_cache(None, CacheShape(**shape)), KVCache)


# Quantized


def slow_quantize(vector, bits, outliers):
    """The numbers of one vector after quantizing, one by one."""
    numbers = [float(x) for x in vector]
    mean = sum(numbers) / len(numbers)
    kept = set(sorted(range(len(numbers)), key=lambda i: -abs(numbers[i] - mean))[:outliers])
    rest = [x for i, x in enumerate(numbers) if i not in kept]
    zero = float(torch.tensor(min(rest), dtype=torch.float64).half())
    scale = float(torch.tensor((max(rest) - zero) / (2**bits - 1), dtype=torch.float64).half())
    found = []
    for i, x in enumerate(numbers):
        if i in kept:
            found.append(float(torch.tensor(x, dtype=torch.float64).half()))
        else:
            code = min(max(round((x - zero) / scale) if scale else 0, 0), 2**bits - 1)
            found.append(zero + code * scale)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("outliers", [0, 1, 3])
def test_quantize_equals_a_slow_one(bits, outliers):
    x = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0, 0, 3], x[0, 1], x[1, 2] = 40.0, 3.0, x[1, 2] + 100  # an outlier, a constant vector, an offset
    found = dequantize(quantize(x, bits, outliers), 7, bits, torch.float64)
    for i in range(2):
        for j in range(5):
            torch.testing.assert_close(found[i, j], slow_quantize(x[i, j], bits, outliers), rtol=0, atol=1e-12)
    assert quantize(x, bits, outliers).codes.shape == (2, 5, 7 if bits == 8 else 4)
    ordinary = x[0, 2:]
    spread = ordinary.amax(-1, keepdim=True) - ordinary.amin(-1, keepdim=True)
    # half a step, and what rounding scale and zero to float16 costs
    assert bool(((found[0, 2:] - ordinary).abs() <= spread / (2**bits - 1) * 0.51 + 2e-3).all())


def test_an_outlier_does_not_cost_the_others_their_precision():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    x[5] = 1000.0
    without = (dequantize(quantize(x, 4), 64, 4, torch.float32) - x).abs()
    kept = (dequantize(quantize(x, 4, 1), 64, 4, torch.float32) - x).abs()
    assert float(without.max()) > 1 and float(kept.max()) < 0.3 and float(kept[5]) == 0


@pytest.mark.sample(4)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("sizes", [[1] * 19, [4, 1, 9, 1, 1, 3], [19]])
@pytest.mark.parametrize(("recent", "outliers", "rotated"), [(0, 0, True), (3, 1, True), (30, 0, True), (2, 2, False)])
def test_what_is_read_is_what_was_quantized(bits, sizes, recent, outliers, rotated):
    """Keys and values as a slow memory of everything gives them, bit for bit."""
    P, group, E = 2, 4, 6
    shape = CacheShape(2, 3, 2, E, 19, torch.float32, torch.device("cpu"), P)
    config = {"kind": f"int{bits}", "group": group, "recent": recent, "outliers": outliers}
    cache = make_cache(config, shape)
    g = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 3, 2, P + 19, E, generator=g) for _ in range(2))
    table = rotary_table(torch.arange(-P, 19)[None, :, None], E, 100.0) if rotated else None

    def remembered(layer, end, steps):
        """All of a layer's keys and values before position `end`, when `steps` steps had been read."""
        k, v = keys[layer, :, :, :end].clone(), values[layer, :, :, :end].clone()
        for first in range(0, max(0, steps - recent) // group * group, group):
            at = slice(P + first, P + first + group)
            by_channel = quantize(k[:, :, at].transpose(2, 3), bits, outliers)
            k[:, :, at] = dequantize(by_channel, group, bits, torch.float32).transpose(2, 3)
            v[:, :, at] = dequantize(quantize(v[:, :, at], bits, outliers), E, bits, torch.float32)
        return (k if table is None else rotate(k.transpose(1, 2), table[:, :end]).transpose(1, 2)), v

    first = 0
    for n in [P, *sizes]:
        end = first + n
        cache.begin(n, None if table is None else table[:, :end])
        for layer in range(2):
            seen = cache.write(layer, keys[layer, :, :, first:end], values[layer, :, :, first:end])
            wanted_keys, wanted_values = remembered(layer, end, max(0, first - P))
            assert seen.keys.equal(wanted_keys) and seen.values.equal(wanted_values)
        cache.advance(n)
        first = end
    with pytest.raises(ValueError, match=f"cache kind 'int{bits}' cannot roll back steps"):
        cache.rewind(0)


@pytest.mark.sample(2)
@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.02), ("int4", 0.3)])
@some_cases
def test_quantized_steps_stay_near_the_full_forward(case, kind, tolerance):
    """Logits here spread by about 1; 8 bits cost a hundredth of that, 4 bits sixteen times as much."""
    config = make_config(case)
    lm, codes, conditions = make_lm(config), make_codes(4, 6), make_conditions(config, 4)
    with torch.no_grad():
        output = lm(codes, None, conditions)
    ids = read(lm, output)
    real = output.logits.isfinite()
    for sizes in (None, [3, ids.shape[2] - 3]):
        logits, _ = step_through(lm, ids, conditions, {"kind": kind, "group": 2, "recent": 1}, sizes)
        difference = (logits - output.logits)[real].abs().max()
        assert 0 < float(difference) < tolerance
    far, _ = step_through(lm, ids, conditions, {"kind": kind, "recent": 100})
    close(far, output.logits)


def test_bytes_of_the_quantized_kinds():
    """Per number of 1024 steps: 8 or 4 bits, 32 bits for each vector's scale and zero; 47 steps as they are."""
    shape = CacheShape(3, 2, 2, 64, 1024 + 47, torch.bfloat16, torch.device("cpu"))
    numbers = 3 * 2 * 2 * 64
    for kind, bits in (("int8", 8), ("int4", 4)):
        cache = make_cache({"kind": kind, "group": 32, "recent": 16}, shape)
        keys, values = 1024 * bits + 1024 // 32 * 32, 1024 * bits + 1024 * 32 // 64
        assert cache.bytes == numbers * (keys + values + 2 * 47 * 16) // 8
        kept = make_cache({"kind": kind, "group": 32, "recent": 16, "outliers": 1}, shape)
        assert kept.bytes - cache.bytes == numbers * (1024 // 32 * 24 + 1024 * 24 // 64) // 8


# Evicting


def slow_evict(keys, budget, recent):
    """For each step the set of steps one head keeps, reading one by one."""
    kept, sets = [], []
    for s in range(len(keys)):
        kept.append(s)
        if len(kept) > budget:
            old = [i for i in kept[:-1] if i <= s - recent] or [kept[0]]
            kept.remove(max(old, key=lambda i: float(keys[i].norm())))
        sets.append(list(kept))
    return sets


@pytest.mark.parametrize(("budget", "recent"), [(4, 1), (5, 3), (1, 0), (30, 2)])
def test_evicting_keeps_the_steps_with_the_shortest_keys(budget, recent):
    P, S, E = 2, 17, 4
    shape = CacheShape(2, 2, 2, E, S, torch.float32, torch.device("cpu"), P)
    cache = make_cache({"kind": "evict", "budget": budget, "recent": recent}, shape)
    g = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 2, 2, P + S, E, generator=g) for _ in range(2))
    cache.begin(P)
    for layer in range(2):
        cache.write(layer, keys[layer, :, :, :P], values[layer, :, :, :P])
    cache.advance(P)
    for s in range(S):
        at = slice(P + s, P + s + 1)
        cache.begin(1)
        for layer in range(2):
            seen = cache.write(layer, keys[layer, :, :, at], values[layer, :, :, at])
            assert seen.mask is None and not seen.causal
            for b in range(2):
                for head in range(2):
                    steps = slow_evict(keys[layer, b, head, P : P + s + 1], budget, recent)[-1]
                    wanted = torch.cat([torch.arange(P), P + torch.tensor(steps)])
                    for found, all_of in ((seen.keys, keys), (seen.values, values)):
                        wanted_rows = sorted(all_of[layer, b, head, wanted].tolist())
                        assert sorted(found[b, head].tolist()) == wanted_rows
        cache.advance(1)


def test_steps_read_together_are_thinned_out_afterwards():
    P, E = 1, 4
    shape = CacheShape(1, 2, 1, E, 20, torch.float32, torch.device("cpu"), P)
    cache = make_cache({"kind": "evict", "budget": 4, "recent": 2}, shape)
    keys = torch.randn(2, 1, 13, E, generator=torch.Generator().manual_seed(0))
    first = 0
    for n in (P, 3, 9):
        cache.begin(n)
        seen = cache.write(0, keys[:, :, first : first + n], keys[:, :, first : first + n])
        assert seen.keys.equal(keys[:, :, : first + n]), "all is seen that was there"
        cache.advance(n)
        first += n
    for b in range(2):
        old = sorted(range(10), key=lambda i: float(keys[b, 0, P + i].norm()))[:2]
        assert cache.keys[0, b, 0, P:].equal(keys[b, 0, [P + i for i in [*sorted(old), 10, 11]]])


@pytest.mark.sample(2)
@some_cases
def test_a_budget_for_all_steps_changes_nothing(case):
    config = make_config(case)
    lm, codes, conditions = make_lm(config), make_codes(4, 6), make_conditions(config, 4)
    with torch.no_grad():
        output = lm(codes, None, conditions)
    for sizes in (None, [2, output.targets.shape[2] - 2]):
        close(step_through(lm, read(lm, output), conditions, "evict", sizes)[0], output.logits)


def test_evicting_settings_that_do_not_fit():
    with pytest.raises(ConfigError, match="recent 8 must be below budget 8"):
        read_cache({"kind": "evict", "budget": 8, "recent": 8})
    lm = make_lm(make_config(window=3))
    with pytest.raises(ValueError, match="trained with window 3; use cache kind 'ring'"):
        lm.start(capacity=4, num_rows=1, cache="evict")
    with pytest.raises(ConfigError, match="multiple of 2"):
        read_cache({"kind": "int4", "group": 5})


@pytest.mark.parametrize("together", [1, 5])
@pytest.mark.parametrize("counted", [False, True])
def test_of_steps_that_are_worth_as_much_but_for_rounding_the_oldest_is_forgotten(together, counted):
    """The first layer's keys of equal codes differ by their turns alone, which leave their norms as they were."""
    if counted and together > 1:
        return
    layers, B, G, E, budget = 1, 2, 1, 4, 4
    shape = CacheShape(layers, B, G, E, 20, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for _trial in range(5):
        cache = make_cache({"kind": "evict", "budget": budget, "recent": 1}, shape)
        if counted:
            cache.position = torch.tensor(0)
        for _ in range(0, 10, together):
            keys = torch.ones(B, G, together, E) * (1 + 2e-7 * torch.randn(B, G, together, 1, generator=generator))
            cache.begin(together)
            cache.write(0, keys, keys)
            cache.advance(together)
        assert sorted(cache.steps[0, 0, 0].tolist()) == [6, 7, 8, 9]
