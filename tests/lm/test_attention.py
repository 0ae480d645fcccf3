"""Attention backends against the obvious loop, and what a missing one says."""

import importlib.util
from functools import cache

import fake_kernels
import pytest
import torch

from tessera.lm.attention.mask_types import CacheLength, PackedSequences, as_mask
from tessera.lm.attention.registry import BACKENDS, available_backends, choose_backend
from tessera.lm.kv_cache.base import CacheShape, KVCache

usable = cache(available_backends)


def slow_attention(queries, keys, values, seen):
    """In float64, one query after the other; seen [B or 1, H or 1, S, M] bool."""
    queries, keys, values = queries.double(), keys.double(), values.double()
    B, H, S, E = queries.shape
    G, M = keys.shape[1:3]
    out = torch.zeros(B, H, S, E, dtype=torch.float64)
    seen = seen.expand(B, H, S, M)
    for b in range(B):
        for h in range(H):
            for s in range(S):
                g, there = h // (H // G), seen[b, h, s]
                weights = (keys[b, g, there] @ queries[b, h, s] / E**0.5).softmax(0)
                out[b, h, s] = weights @ values[b, g, there]
    return out


def lengths_of(generator, count, most):
    return torch.randint(1, most + 1, (count,), generator=generator).tolist()


def make_case(how, seed, E=16):
    """Random (queries, keys, values, mask, causal) in float32 and what is seen, written out by loops."""
    g = torch.Generator().manual_seed(seed)
    B, G, group = (int(torch.randint(1, 4, (), generator=g)) for _ in range(3))
    S, M = (int(torch.randint(1, 9, (), generator=g)) for _ in range(2))
    H, mask, causal = G * group, None, how == "causal"
    if how == "causal":
        M = S
    elif how in ("cache", "cache counted on the device"):
        count = S + int(torch.randint(0, 5, (), generator=g))
        M = count + int(torch.randint(0, 3, (), generator=g))
        on_device = how == "cache counted on the device"
        mask = CacheLength(torch.tensor(count, dtype=torch.int32) if on_device else count)
    elif how == "mask":
        mask = torch.rand(B, 1, S, M, generator=g) < 0.5
        mask[..., 0] = True
    elif how == "padding":
        mask = torch.arange(M) < torch.randint(1, M + 1, (B,), generator=g)[:, None, None, None]
    elif how in ("rows", "rows in a window", "rows in a window behind a prefix", "rows read another"):
        B, lengths = 1, lengths_of(g, 4, 7)
        window = 2 if "window" in how else None
        prefixes = [min(2, length - 1) for length in lengths] if "prefix" in how else None
        others = lengths_of(g, 4, 5) if how == "rows read another" else None
        mask = PackedSequences(lengths, "cpu", others, prefixes, window)
        S, M = sum(lengths), sum(others or lengths)
    queries, keys, values = (torch.randn(B, n, m, E, generator=g) for n, m in ((H, S), (G, M), (G, M)))
    seen = torch.ones(1, 1, S, M, dtype=torch.bool)
    if isinstance(mask, PackedSequences):
        row_of, place_of = numbered(mask.lengths)
        key_row, key_place = numbered(mask.key_lengths)
        for s in range(S):
            for m in range(M):
                back = place_of[s] - key_place[m]
                near = back < 2 or (prefixes is not None and key_place[m] < prefixes[key_row[m]])
                in_sight = others is not None or (back >= 0 and (window is None or near))
                seen[0, 0, s, m] = row_of[s] == key_row[m] and in_sight
    elif isinstance(mask, CacheLength):
        for s in range(S):
            seen[0, 0, s] = torch.arange(M) <= count - S + s
    elif mask is not None:
        seen = mask.expand(B, 1, S, M)
    elif causal:
        seen = seen.tril()
    return (queries, keys, values, mask, causal), seen


def numbered(lengths):
    return zip(*[(row, place) for row, length in enumerate(lengths) for place in range(length)], strict=True)


ROWS = ("rows", "rows in a window", "rows in a window behind a prefix", "rows read another")
SIGHTS = ("all", "causal", "mask", "padding", "cache", "cache counted on the device", *ROWS)


@pytest.mark.sample(2)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", SIGHTS)
def test_backends_equal_the_loop(how, seed):
    arguments, seen = make_case(how, seed)
    expected = slow_attention(*arguments[:3], seen)
    names = [name for name, state in usable("cpu").items() if state == "ok"]
    assert "sdpa" in names
    for name in names:
        found = choose_backend(name, "cpu")(*arguments)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)  # float32
    dense = as_mask(arguments[3], *arguments[:2])
    assert dense is None or dense.expand_as(seen).equal(seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", SIGHTS)
@pytest.mark.parametrize("name", list(BACKENDS))
def test_backends_equal_the_loop_on_cuda(name, how, dtype):
    if usable("cuda")[name] != "ok":
        pytest.skip(usable("cuda")[name])
    arguments, seen = make_case(how, 0, E=32)
    there = [x.to("cuda", dtype) for x in arguments[:3]]
    mask = arguments[3]
    if isinstance(mask, PackedSequences):
        others = None if mask.causal else mask.key_lengths
        mask = PackedSequences(mask.lengths, "cuda", others, mask.prefixes, mask.window)
    elif isinstance(mask, CacheLength):
        mask = CacheLength(mask.count.cuda() if isinstance(mask.count, torch.Tensor) else mask.count)
    elif mask is not None:
        mask = mask.cuda()
    with torch.no_grad():
        found = choose_backend(name, "cuda")(*there, mask, arguments[4]).cpu()
    expected = slow_attention(*(x.cpu() for x in there), seen)
    close = 2e-2 if dtype == torch.bfloat16 else 5e-3  # TensorFloat-32 may be in use
    torch.testing.assert_close(found.double(), expected, rtol=close, atol=close)


FLASH_CALLS = {
    "all": "flash_attn_func",
    "causal": "flash_attn_func",
    "cache": "flash_attn_with_kvcache",
    "cache counted on the device": "flash_attn_with_kvcache",
    "rows": "flash_attn_varlen_func",
    "rows in a window": "flash_attn_varlen_func",
    "rows read another": "flash_attn_varlen_func",
}
XFORMERS_CALLS = {
    "all": "NoneType",
    "causal": "LowerTriangularMask",
    "rows": "BlockDiagonalCausalMask",
    "rows read another": "BlockDiagonalMask",
}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("how", SIGHTS)
def test_flash_and_xformers_are_called_as_documented(monkeypatch, how, seed):
    flash, ops = fake_kernels.install(monkeypatch)
    arguments, seen = make_case(how, seed)
    expected = slow_attention(*arguments[:3], seen)
    found = BACKENDS["xformers"](*arguments)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    half = [x.bfloat16() for x in arguments[:3]]
    found = BACKENDS["flash"](*half, *arguments[3:])
    torch.testing.assert_close(found.double(), slow_attention(*half, seen), rtol=2e-2, atol=2e-2)  # bfloat16
    assert flash.called == ([FLASH_CALLS[how]] if how in FLASH_CALLS else [])
    assert ops.called == ([XFORMERS_CALLS[how]] if how in XFORMERS_CALLS else [])
    found = BACKENDS["flash"](*arguments)  # float32 is not for its kernels
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert len(flash.called) == (how in FLASH_CALLS)


@pytest.mark.parametrize("how", ["causal", "mask", *ROWS])
def test_gradients_of_rows_equal_those_of_the_dense_mask(how):
    arguments, seen = make_case(how, 1)
    gradients = []
    for mask, causal in ((arguments[3], arguments[4]), (seen, False)):
        tensors = [x.clone().requires_grad_() for x in arguments[:3]]
        BACKENDS["sdpa"](*tensors, mask, causal).square().sum().backward()
        gradients.append([x.grad for x in tensors])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_flex_says_that_it_cannot_train_on_the_cpu():
    x = torch.randn(1, 1, 3, 16, requires_grad=True)
    with pytest.raises(ValueError, match="attention 'flex' has no backward pass on the CPU"):
        BACKENDS["flex"](x, x, x, None, True)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_cache_that_counts_means_the_same(on_device):
    torch.manual_seed(0)
    shape = CacheShape(1, 2, 2, 16, 9, torch.float32, torch.device("cpu"), prefix_length=3)
    pieces = [torch.randn(2, 2, n, 16) for n in (3, 1, 2, 4)]
    results = []
    for counted in (False, True):
        cache = KVCache(CacheShape(**{**vars(shape), "counted": counted}))
        if on_device:
            cache.position = torch.zeros((), dtype=torch.long)
        mixed = []
        for piece in pieces:
            cache.begin(piece.shape[2])
            seen = cache.write(0, piece, -piece)
            mixed.append(BACKENDS["sdpa"](piece, *seen))
            assert not counted or not len(mixed) > 1 or isinstance(seen.mask, CacheLength)
            cache.advance(piece.shape[2])
        results.append(torch.cat(mixed, dim=2))
    torch.testing.assert_close(*results)


def test_a_missing_backend_is_an_error_only_by_name():
    assert choose_backend("auto") is BACKENDS["sdpa"]
    for name, module, package in [("flash", "flash_attn", "flash-attn"), ("xformers", "xformers", "xformers")]:
        if importlib.util.find_spec(module) is None:
            with pytest.raises(ImportError, match=rf"pip install {package}"):
                choose_backend(name)
            assert package in available_backends()[name]
    with pytest.raises(ValueError, match="attention 'fast' is unknown; choose auto, sdpa, flash, xformers, flex"):
        choose_backend("fast")  # type: ignore[arg-type]
    assert available_backends()["sdpa"] == "ok"


def test_a_backend_that_fails_its_probe_is_refused(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setitem(BACKENDS, "xformers", broken)
    monkeypatch.setattr("tessera.lm.attention.registry._check_installed", lambda name: None)
    with pytest.raises(ValueError, match=r"attention 'xformers' does not work on 'cpu' here \(no kernel image\)"):
        choose_backend("xformers", "cpu")
    with pytest.raises(ValueError, match="runs on CUDA devices, not on 'cpu'"):
        choose_backend("flash", "cpu")


def test_cache_writes_in_place():
    cache = KVCache(CacheShape(2, 1, 2, 4, 5, torch.float32, torch.device("cpu")))
    pieces = [torch.randn(1, 2, size, 4) for size in (2, 1, 2)]
    for piece in pieces:
        cache.begin(piece.shape[2])
        for layer in range(2):
            keys, values, _, _ = cache.write(layer, piece + layer, piece - layer)
        cache.advance(piece.shape[2])
    assert cache.length == cache.capacity == 5
    assert keys.data_ptr() == cache.keys[1].data_ptr()
    assert keys.equal(torch.cat(pieces, dim=2) + 1) and values.equal(torch.cat(pieces, dim=2) - 1)
