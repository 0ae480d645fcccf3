"""What `attention: auto` takes, as a rule without a GPU; and that it is what runs, and what a run says of itself."""

import itertools

import pytest
import torch

from tessera.lm.attention import registry
from tessera.lm.attention.auto import Choice, choose_kernel
from tessera.lm.attention.mask_types import CacheLength, PackedSequences
from tessera.lm.attention.registry import BACKENDS, choose_backend, explain

OK = {"flash": "ok", "xformers": "ok"}
PACKED = PackedSequences([3, 2], "cpu")
WINDOW = PackedSequences([30, 2], "cpu", window=4)
WINDOW_BEHIND_PREFIX = PackedSequences([30, 20], "cpu", prefixes=[2, 2], window=4)


@pytest.mark.parametrize(
    ("case", "name", "because"),
    [
        ((PACKED, "cuda", torch.bfloat16, 64, OK), "flash", "one kernel for all packed rows"),
        ((PACKED, "cuda", torch.float16, 256, OK), "flash", "one kernel"),
        ((WINDOW, "cuda", torch.bfloat16, 64, OK), "flash", "one kernel"),
        ((PACKED, "cuda", torch.bfloat16, 264, OK), "xformers", "not flash: head width 264 is above its limit of 256"),
        ((PACKED, "cuda", torch.bfloat16, 20, OK), "xformers", "not flash: head width 20 is not a multiple of 8"),
        ((PACKED, "cuda", torch.bfloat16, 64, {"xformers": "ok"}), "xformers", "not flash: not installed"),
        ((PACKED, "cuda", torch.bfloat16, 64, {**OK, "flash": "no kernel image"}), "xformers", "no kernel image"),
        (
            (WINDOW_BEHIND_PREFIX, "cuda", torch.bfloat16, 64, OK),
            "sdpa",
            "its window does not support a prefix; not xformers",
        ),
        ((PACKED, "cuda", torch.float32, 64, OK), "sdpa", "half precision, not in float32"),
        ((PACKED, "cuda", torch.bfloat16, 64, {}), "sdpa", "not flash: not installed; not xformers: not installed"),
        ((PACKED, "cpu", torch.bfloat16, 64, OK), "sdpa", "need a CUDA device, found 'cpu'"),
        ((PACKED, "mps", torch.bfloat16, 64, OK), "sdpa", "need a CUDA device, found 'mps'"),
        ((None, "cuda", torch.bfloat16, 64, OK), "sdpa", "torch's own kernels"),
        ((torch.ones(1, 1, 2, 2).bool(), "cuda", torch.bfloat16, 64, OK), "sdpa", "torch's own kernels"),
        ((CacheLength(3), "cuda", torch.bfloat16, 64, OK), "sdpa", "torch's own kernels"),
    ],
)
def test_the_rule(case, name, because):
    chosen = choose_kernel(*case)
    assert chosen.name == name and because in chosen.reason


def test_what_is_chosen_computes_it_itself():
    """Nothing is chosen that would hand the work on to sdpa."""
    sights = [PACKED, WINDOW, WINDOW_BEHIND_PREFIX, PackedSequences([2, 3], "cpu", keys=[4, 1])]
    for rows, dtype, head in itertools.product(sights, [torch.float32, torch.bfloat16], [8, 20, 256, 512]):
        name = choose_kernel(rows, "cuda", dtype, head, OK).name
        if name != "sdpa":
            assert dtype == torch.bfloat16
        if name == "flash":
            assert head <= 256 and not (rows.window is not None and any(rows.prefixes))
        if name == "xformers":
            assert rows.window is None


def test_auto_runs_what_is_chosen(monkeypatch):
    x = torch.randn(1, 2, 5, 8)
    called = []

    def flash(*arguments):
        called.append("flash")
        return BACKENDS["sdpa"](*arguments)

    monkeypatch.setitem(BACKENDS, "flash", flash)
    monkeypatch.setattr(registry, "choose_kernel", lambda *_: Choice("flash", ""))
    expected = BACKENDS["sdpa"](x, x, x, PACKED, False)
    assert torch.equal(registry.auto(x, x, x, PACKED, False), expected) and called == ["flash"]
    assert torch.equal(registry.auto(x, x, x, None, True), BACKENDS["sdpa"](x, x, x, None, True))
    assert called == ["flash"]  # what is not packed needs no choice


def test_without_cuda_auto_is_sdpa(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_backend("auto") is BACKENDS["sdpa"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_backend("auto") is registry.auto
    assert explain("auto", "cpu", torch.float32, 64, packed=True).name == "sdpa"
    assert explain("flex", "cpu", torch.float32, 64, packed=True) == Choice("flex", "as configured")


def test_packages_are_tried_once_a_device(monkeypatch):
    tried = []
    monkeypatch.setattr(registry, "probe", lambda name, device: tried.append((name, str(device))))
    registry.usable_packages.cache_clear()
    for _ in range(3):
        assert registry.usable_packages("cuda:7") == OK
    assert tried == [("flash", "cuda:7"), ("xformers", "cuda:7")]
    registry.usable_packages.cache_clear()
