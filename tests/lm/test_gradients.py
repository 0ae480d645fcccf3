"""Gradients that are written out against those that autograd makes of the plain operations."""

import pytest
import torch
import torch.nn.functional as F

from tessera.lm.layers.norm import RMSNorm
from tessera.lm.ops.fused_autograd import gated


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_of_rms_norm_is_that_of_its_operations(dtype):
    torch.manual_seed(0)
    norm = RMSNorm(6).to(torch.float64 if dtype == torch.float64 else torch.float32)
    norm.weight.data.uniform_()
    gradients, results = [], []
    for by_hand in (True, False):
        x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        norm.weight.grad = None
        if by_hand:
            y = norm(x)
            with torch.no_grad():
                assert norm(x).equal(y)
        else:
            wide = x if dtype == torch.float64 else x.float()
            y = (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight).to(dtype)
        (y.float() * torch.arange(36.0).view(2, 3, 6)).sum().backward()
        results.append(y.detach())
        gradients.append([x.grad, norm.weight.grad])
    assert results[0].equal(results[1])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(14,), (3, 2), (2, 5, 8), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_gate_and_its_gradient_are_those_of_its_operations(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    values = (4 * torch.randn(shape, generator=generator)).to(dtype)
    into = torch.randn(*shape[:-1], shape[-1] // 2, generator=generator).to(dtype)
    x, plain = (values.clone().requires_grad_() for _ in range(2))
    gate, up = plain.chunk(2, dim=-1)
    expected = F.silu(gate) * up
    found = gated(x)
    with torch.no_grad():
        assert gated(x).equal(expected)
    assert found.equal(expected)
    found.backward(into)
    expected.backward(into)
    assert x.grad.equal(plain.grad)


def test_a_gate_takes_a_gradient_of_any_layout():
    x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0)).transpose(0, 1).requires_grad_()
    into = torch.arange(48.0).view(4, 4, 3).permute(2, 1, 0)
    (found,) = torch.autograd.grad(gated(x), x, into)
    gate, up = x.chunk(2, dim=-1)
    assert found.equal(torch.autograd.grad(F.silu(gate) * up, x, into)[0])
