"""Frozen networks on a CPU compute by matrix products what their modules compute, up to rounding of float32."""

import copy
import random

import pytest
import torch
from torch import nn

from tessera.tokenize.audio.dac import Snake
from tessera.tokenize.layers.lstm_steps import run_lstm
from tessera.tokenize.layers.masked_conv import (
    ConvStack,
    PaddedConv,
    PaddedTranspose,
    Pointwise,
    Residual,
)
from tessera.tokenize.layers.row_conv import Span, convolve, elu, lay_out, pad_rows
from tessera.tokenize.layers.unfilled import Unfilled
from tessera.tokenize.layers.weight_norm import folded_norms
from tessera.tokenize.quantizers.vq import VectorQuantizer, VQConfig

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32; products add up in another order


def random_stack(rng):
    """Layers as in the codecs, of random shapes: 4 steps a frame come in, 2 * stride go out."""
    causal, padding = rng.random() < 0.5, rng.choice(["zeros", "reflect", "replicate"])
    ragged = rng.random() < 0.5

    def conv(inputs, outputs, kernel, stride=1, dilation=1, groups=1):
        norm = rng.choice(["none", "time_group"]) if stride == 1 and groups == 1 and rng.random() < 0.2 else "none"
        sizes = (inputs, outputs, kernel, stride, dilation)
        return PaddedConv(*sizes, causal, padding, norm, groups=groups, ragged=ragged)

    def activation(width):
        return Pointwise(rng.choice([nn.ELU(), nn.Tanh(), Snake(width)]))

    shortcut = rng.choice([None, conv(4, 4, 1)])
    up = rng.randint(2, 5)
    layers = [
        *([activation(3)] if rng.random() < 0.3 else []),
        conv(3, 4, rng.randint(1, 7)),
        Residual([activation(4), conv(4, 2, 3, dilation=rng.randint(1, 3)), activation(2), conv(2, 4, 1)], shortcut),
        activation(4),
        conv(4, 6, 4, 2),
        conv(6, 6, 3, groups=rng.choice([1, 6])),
        activation(6),
    ]
    if not ragged:  # that is of encoders, which have no higher rate than that of their input
        layers += [
            PaddedTranspose(6, 4, up, causal, rng.choice([1.0, 0.5]), short=not causal and rng.random() < 0.5),
            *([activation(4)] if rng.random() < 0.5 else []),
            conv(4, 2, rng.choice([1, 5])),
            *([Pointwise(nn.Tanh())] if rng.random() < 0.5 else []),
        ]
    return ConvStack(layers, 4).eval(), ragged


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_a_frozen_stack_equals_its_modules(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    stack, ragged = random_stack(rng)
    for parameter in stack.parameters():
        nn.init.uniform_(parameter, 0.2, 0.8) if parameter.dim() < 2 else None
    frozen = copy.deepcopy(stack)
    frozen.freeze()
    for name, parameter in frozen.named_parameters():
        assert torch.equal(parameter, stack.get_parameter(name)), "only the order in memory changes"
    frames = rng.randint(1, 20)
    first = rng.randint(0, frames - 1)
    last = rng.randint(first, frames - 1)
    mask = torch.zeros(1, frames, 4, dtype=torch.bool)
    mask[0, first : last + 1] = True
    if ragged:
        mask[0, last, rng.randint(1, 4) :] = False
    mask = mask if ragged else mask[:, :, 0]
    x = torch.randn(1, frames, 4, 3)
    given = x.clone()
    found, wanted = frozen(x, mask), stack(x, mask)
    assert torch.equal(x, given), "the input is not changed"
    steps = wanted.shape[2]
    end = last * steps - (-int(mask[0, last].sum()) * steps // 4 if ragged else -steps) - stack.lost
    inside = slice(first * steps, max(first * steps, end))
    torch.testing.assert_close(found.flatten(1, 2)[:, inside], wanted.flatten(1, 2)[:, inside], **CLOSE)


@torch.no_grad()
def test_frozen_stacks_leave_batches_and_gradients_to_their_modules():
    stack, _ = random_stack(random.Random(0))
    stack.freeze()
    x = torch.randn(2, 3, 4, 3)
    assert stack.uses_rows(x[:1]) and not stack.uses_rows(x) and not stack.uses_rows(x[:1].double())
    with torch.enable_grad():
        assert not stack.uses_rows(x[:1])


def test_reflection_of_a_signal_shorter_than_its_padding():
    x = torch.tensor([[1.0], [2.0]])
    assert pad_rows(x, Span(0, 2), 4, 0, "reflect")[:, 0].tolist() == [0, 0, 0, 2, 1, 2]
    assert pad_rows(x, Span(0, 2), 2, 1, "replicate")[:, 0].tolist() == [1, 1, 1, 2, 2]
    assert pad_rows(x, Span(1, 2), 1, 1, "zeros")[:, 0].tolist() == [0, 0, 2, 0]


def test_elu_is_that_of_torch():
    """Up to rounding at 1: what is added to the result is not smaller."""
    x = torch.cat([torch.randn(1000), 10 ** torch.linspace(-9, 2, 1000), -(10 ** torch.linspace(-9, 2, 1001))])
    x = torch.cat([x, torch.tensor([0.0, torch.inf, -torch.inf])])
    found = elu(x, torch.empty_like(x))
    torch.testing.assert_close(found, nn.functional.elu(x), rtol=0, atol=1.2e-7)
    assert elu(x, x) is x and torch.equal(x, found)


@torch.no_grad()
def test_few_channels_are_gathered():
    for channels, kernel, stride, dilation in ((1, 7, 1, 1), (2, 3, 1, 4), (3, 6, 2, 1), (20, 3, 1, 2)):
        layer = nn.Conv1d(channels, 5, kernel, stride, dilation=dilation)
        x = torch.randn(channels, 24)
        torch.testing.assert_close(convolve(x.T.contiguous(), layer), layer(x[None])[0].T, **CLOSE)


def test_weights_laid_out_keep_their_values():
    depthwise = nn.ConvTranspose1d(4, 4, 6, 3, groups=4)
    for layer in (nn.Conv1d(3, 4, 5), nn.ConvTranspose1d(3, 4, 6, 3), depthwise, nn.Linear(3, 4)):
        before = layer.weight.detach().clone()
        lay_out(layer)
        assert torch.equal(layer.weight, before) and not layer.weight.is_contiguous()


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_an_lstm_step_by_step(bias):
    torch.manual_seed(1)
    lstm = nn.LSTM(5, 7, 3, bias=bias, batch_first=True)
    x = torch.randn(1, 11, 5)
    wanted, (hidden, cell) = lstm(x)
    found, state = run_lstm(lstm, x[0], None)
    torch.testing.assert_close(found[None], wanted, **CLOSE)
    torch.testing.assert_close(state, (hidden, cell), **CLOSE)
    first, state = run_lstm(lstm, x[0, :4], None)
    kept = [one.clone() for one in state]
    second, _ = run_lstm(lstm, x[0, 4:], state)
    torch.testing.assert_close(torch.cat([first, second]), found, **CLOSE)
    assert all(torch.equal(one, before) for one, before in zip(state, kept, strict=True)), "a state is not changed"


@pytest.mark.parametrize("change", ["in place", "another tensor"])
@torch.no_grad()
def test_tables_of_a_frozen_codebook_follow_its_tensors(change):
    torch.manual_seed(2)
    quantizer = VectorQuantizer(VQConfig(size=8, code_dim=2), 4)
    quantizer.freeze()
    x = torch.randn(1, 30, 4)
    quantizer.encode(x)
    changed = torch.randn(8, 2)
    if change == "in place":
        quantizer.codebook.sum.copy_(changed)
    else:
        quantizer.codebook.sum = changed
    plain = VectorQuantizer(VQConfig(size=8, code_dim=2), 4).eval()
    plain.load_state_dict(quantizer.state_dict())
    codes = quantizer.encode(x)
    assert torch.equal(codes, plain.encode(x))
    assert torch.equal(quantizer.decode(codes), plain.decode(codes))


def test_networks_for_weights_from_a_file_have_the_same_tensors():
    def layers():
        return nn.ModuleList([PaddedConv(2, 3, 3, norm="weight"), PaddedTranspose(2, 3, 2, norm="weight")])

    with torch.device("meta"), Unfilled(), folded_norms():
        found = layers()
        drawn = torch.randn(3, 4)
        assert drawn / 2 is drawn and 0.5 * drawn is drawn, "torch would import its compiler for it"
    names = {"0.conv.weight", "0.conv.bias", "1.conv.weight", "1.conv.bias"}
    assert set(found.state_dict()) == names
    torch.manual_seed(3)
    with Unfilled():
        nn.Linear(2, 2), torch.randn(3)
    assert torch.initial_seed() == 3 and torch.equal(torch.rand(1), torch.rand(1, generator=torch.manual_seed(3)))
    assert set(layers().state_dict()) != names
