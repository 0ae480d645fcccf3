"""Gradients that are written out against those that autograd makes of the plain operations."""

import pytest
import torch
import torch.nn.functional as F

from tessera.lm.layers.norm import RMSNorm
from tessera.lm.ops import fused_autograd
from tessera.lm.ops.fused_autograd import gated, token_losses


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


def plain_losses(logits, targets, smoothing):
    """Cross-entropy row by row, over the ids whose logit is not -inf."""
    terms = []
    for row, target in zip(logits, targets, strict=True):
        if target == -100:
            terms.append(torch.zeros(()))
            continue
        logs = row.float() - row.float().logsumexp(-1)
        mean = logs[row != float("-inf")].mean()
        terms.append(-(1 - smoothing) * logs[target] - smoothing * mean)
    return torch.stack(terms) if terms else torch.zeros(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_their_gradient_are_those_of_plain_operations(dtype, rows, smoothing, monkeypatch):
    monkeypatch.setattr(fused_autograd, "_rows_at_once", lambda logits: rows)
    generator = torch.Generator().manual_seed(rows)
    values = (3 * torch.randn(7, 11, generator=generator)).to(dtype)
    values[2:5, 8:] = float("-inf")
    targets = torch.tensor([0, -100, 3, 7, 2, 10, -100])
    into = torch.randn(7, generator=generator)
    fast, slow = values.clone().requires_grad_(), values.float().requires_grad_()
    found, expected = token_losses(fast, targets, smoothing), plain_losses(slow, targets, smoothing)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert token_losses(fast, targets, smoothing).equal(found)
    found.backward(into)
    expected.backward(into)
    expected = slow.grad.nan_to_num()  # of -inf that is left out: 0 or nan
    torch.testing.assert_close(fast.grad, expected.to(dtype))
    assert not fast.grad[targets == -100].any()
    assert not fast.grad[2:5, 8:].any()


def test_losses_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 1024, generator=generator).requires_grad_()
    targets = torch.randint(1024, (300,), generator=generator)
    targets[torch.rand(300, generator=generator) < 0.1] = -100
    expected = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    found = token_losses(logits, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(losses.sum(), logits)[0] for losses in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-7)


def test_no_rows_have_no_losses():
    logits = torch.zeros(0, 5, requires_grad=True)
    found = token_losses(logits, torch.zeros(0, dtype=torch.long))
    found.sum().backward()
    assert found.shape == (0,) and logits.grad.shape == (0, 5)
