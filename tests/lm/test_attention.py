"""Attention backends against the obvious loop, and what a missing one says."""

import importlib.util

import pytest
import torch

from tessera.lm.attention import BACKENDS, available_backends, choose_backend
from tessera.lm.cache import KVCache
from tessera.lm.transformer import RMSNorm


def slow_attention(queries, keys, values, mask, causal):
    B, H, S, E = queries.shape
    G, M = keys.shape[1:3]
    out = torch.zeros(B, H, S, E)
    seen = torch.ones(B, H, S, M, dtype=torch.bool) if mask is None else mask.expand(B, H, S, M)
    for b in range(B):
        for h in range(H):
            for s in range(S):
                g = h // (H // G)
                allowed = [m for m in range(M) if seen[b, h, s, m] and not (causal and m > s)]
                scores = torch.stack([queries[b, h, s] @ keys[b, g, m] / E**0.5 for m in allowed]).softmax(0)
                out[b, h, s] = sum(score * values[b, g, m] for score, m in zip(scores, allowed, strict=True))
    return out


@pytest.mark.parametrize("name", [name for name, state in available_backends().items() if state == "ok"])
@pytest.mark.parametrize(("H", "G"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("S", [1, 3])
@pytest.mark.parametrize("how", ["all", "causal", "mask"])
def test_backends_equal_the_loop(name, H, G, S, how):
    torch.manual_seed(0)
    M = S if how == "causal" else 5
    queries, keys, values = torch.randn(2, H, S, 8), torch.randn(2, G, M, 8), torch.randn(2, G, M, 8)
    mask = None
    if how == "mask":
        mask = torch.rand(2, 1, S, M) < 0.5
        mask[..., 0] = True
    attend = choose_backend(name)
    found = attend(queries, keys, values, mask, how == "causal")
    # float32, another order of sums
    torch.testing.assert_close(
        found, slow_attention(queries, keys, values, mask, how == "causal"), rtol=1e-5, atol=1e-5
    )


def test_a_missing_backend_is_an_error_only_by_name():
    assert choose_backend("auto") is BACKENDS["sdpa"]
    for name, module, package in [("flash", "flash_attn", "flash-attn"), ("xformers", "xformers", "xformers")]:
        if importlib.util.find_spec(module) is None:
            with pytest.raises(ImportError, match=rf"pip install {package}"):
                choose_backend(name)
            assert package in available_backends()[name]
    with pytest.raises(ValueError, match="attention 'fast' is unknown; choose auto, sdpa, flash, xformers"):
        choose_backend("fast")  # type: ignore[arg-type]
    assert available_backends()["sdpa"] == "ok"


def test_a_backend_that_fails_its_probe_is_refused(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setitem(BACKENDS, "xformers", broken)
    monkeypatch.setattr("tessera.lm.attention._import", lambda name: None)
    with pytest.raises(ValueError, match=r"attention 'xformers' does not work on 'cpu' here \(no kernel image\)"):
        choose_backend("xformers")
    with pytest.raises(ValueError, match="runs on CUDA devices, not on 'cpu'"):
        choose_backend("flash")


def test_cache_writes_in_place():
    cache = KVCache(2, 1, 2, 5, 4, torch.float32, torch.device("cpu"))
    pieces = [torch.randn(1, 2, size, 4) for size in (2, 1, 2)]
    for piece in pieces:
        cache.begin(piece.shape[2])
        for layer in range(2):
            keys, values, _, _ = cache.write(layer, piece + layer, piece - layer)
        cache.advance(piece.shape[2])
    assert cache.length == cache.capacity == 5
    assert keys.data_ptr() == cache.keys[1].data_ptr()
    assert keys.equal(torch.cat(pieces, dim=2) + 1) and values.equal(torch.cat(pieces, dim=2) - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rms_norm(dtype):
    torch.manual_seed(0)
    norm = RMSNorm(6)
    norm.weight.data.uniform_()
    x = (100 * torch.randn(3, 6)).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), expected.to(dtype))
