"""Products in bfloat16 as a processor without instructions for it makes them, against exact ones and torch's own."""

import pytest
import torch
import torch.nn.functional as F

from tessera.lm.attention import sdpa
from tessera.lm.ops import linear
from tessera.lm.ops.linear import Linear

BFLOAT16 = {"rtol": 2**-7, "atol": 2**-7}


@pytest.fixture(params=[True, False], ids=["without instructions", "with them"])
def lacks(request, monkeypatch):
    """Both kinds of processor; torch's own product works on each."""
    for module in (linear, sdpa):
        monkeypatch.setattr(module, "lacks_bfloat16", lambda: request.param)
    return request.param


def gradients(run, *tensors):
    """What run gives and the gradients of a sum of it, of tensors and then of the layer."""
    y = run(*tensors)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    return y, torch.autograd.grad((y.float() * weights).sum(), tensors)


@pytest.mark.sample(9)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (0, 24)])
@pytest.mark.parametrize("way", ["autocast", "weights", "autocast of bfloat16 weights"])
def test_a_layer_in_bfloat16(lacks, way, shape, bias):
    torch.manual_seed(0)
    layer = Linear(24, 7, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    if "weights" in way:
        layer, x = layer.bfloat16(), x.detach().bfloat16().requires_grad_()
    parameters = tuple(layer.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in way):
        y, found = gradients(lambda x, *_: layer(x), x, *parameters)
    half = [z.detach().bfloat16().double().requires_grad_() for z in (x, *parameters)]
    exact, expected = gradients(lambda *parts: F.linear(*parts).bfloat16(), *half)
    assert y.dtype == torch.bfloat16 and y.shape == exact.shape
    torch.testing.assert_close(y, exact, **BFLOAT16)
    for one, other, tensor in zip(found, expected, (x, *parameters), strict=True):
        assert one.dtype == tensor.dtype
        torch.testing.assert_close(one.double(), other, rtol=2**-6, atol=2**-6)


def test_without_the_instructions_only_the_order_of_the_sum_differs(monkeypatch):
    """Whole numbers below 256 have no rounding before the end, so every order gives the same sum."""
    numbers = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randint(-9, 10, size, generator=numbers).bfloat16() for size in ((6, 40), (9, 40), (9,)))
    exact = (x.long() @ weight.long().T + bias.long()).bfloat16()
    monkeypatch.setattr(linear, "lacks_bfloat16", lambda: True)
    assert linear.linear(x, weight, bias).equal(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_numbers_are_multiplied_as_torch_does(lacks, dtype):
    torch.manual_seed(0)
    layer = Linear(24, 7).to(dtype)
    x = torch.randn(3, 24, dtype=dtype)
    assert layer(x).equal(F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_attention_in_bfloat16(lacks, masked, autocast):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 8).bfloat16().requires_grad_() for heads in (4, 2, 2))
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if masked else None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, found = gradients(lambda *parts: sdpa.sdpa(*parts, mask, not masked), q, k, v)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact, expected = gradients(lambda *parts: sdpa.sdpa(*parts, mask, not masked), *wide)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, **BFLOAT16)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=2**-5, atol=2**-5)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_avx512_alone_has_no_bfloat16(monkeypatch, bfloat16, amx):
    monkeypatch.setattr(linear.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(linear.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(linear.torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(linear.torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert linear.lacks_bfloat16.__wrapped__() == (not bfloat16 and not amx)
