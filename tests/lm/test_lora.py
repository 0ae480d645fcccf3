"""Low-rank changes: nothing at the start, the sum of base and change after that, one matrix when merged."""

import copy
import itertools

import pytest
import torch
from small_models import CASES, cardinalities_for, make_codes, make_conditions, make_config, make_lm
from torch import nn

from tessera.configs.schema import ConfigError
from tessera.lm.layers.lora import LoRAConfig, add_lora_, is_lora, lora_layers, merge_lora_
from tessera.lm.ops.linear import Linear

SIZES = [(1, None, 0.0), (2, 8.0, 0.0), (4, 1.0, 0.5)]


def strong_(net: nn.Module, seed: int = 5) -> nn.Module:
    """Changes as after training: the upper matrices are not zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, layer in lora_layers(net):
            layer.lora_up.normal_(std=0.3)
    return net


@pytest.mark.parametrize(("rank", "alpha", "dropout"), SIZES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_equals_the_formula(rank, alpha, dropout, bias):
    """The slow way: one output after another, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(Linear(5, 7, bias=bias)).eval()
    add_lora_(net, LoRAConfig(rank=rank, alpha=alpha, targets=("0",), dropout=dropout))
    layer = strong_(net)[0]
    x = torch.randn(3, 5)
    A, B, W = (tensor.detach().double() for tensor in (layer.lora_down, layer.lora_up, layer.weight))
    scale = (rank if alpha is None else alpha) / rank
    expected = torch.zeros(3, 7, dtype=torch.float64)
    for b, n in itertools.product(range(3), range(7)):
        inner = [sum(A[r, d] * x[b, d] for d in range(5)) for r in range(rank)]
        expected[b, n] = sum(W[n, d] * x[b, d] for d in range(5)) + scale * sum(B[n, r] * inner[r] for r in range(rank))
        expected[b, n] += layer.bias[n].double() if bias else 0
    torch.testing.assert_close(net(x).double(), expected, atol=1e-5, rtol=1e-5)
    merged = merge_lora_(copy.deepcopy(net))
    assert type(merged[0]) is Linear and (merged[0].bias is not None) == bias
    torch.testing.assert_close(merged(x).double(), expected, atol=1e-5, rtol=1e-5)


def logits(lm, config):
    codes, conditions = make_codes(3, 5, cardinalities_for(config)), make_conditions(config, 3)
    with torch.no_grad():
        return lm(codes, torch.tensor([5, 4, 2]), conditions).logits


@pytest.mark.sample(8)
@pytest.mark.parametrize("case", list(CASES)[::6])
def test_a_model_starts_as_its_base_and_merges(case):
    config = make_config(CASES[case])
    lm = make_lm(config)
    base = logits(lm, config)
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    add_lora_(lm, LoRAConfig(rank=2, alpha=3.0, targets=("*",)))
    assert torch.equal(logits(lm, config), base)  # bit for bit
    changed = logits(strong_(lm), config)
    seen = base.isfinite()
    assert not torch.allclose(changed[seen], base[seen], atol=1e-2)
    after = lm.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name for name in after if name not in before} == {name for name in after if is_lora(name)}
    merged = merge_lora_(copy.deepcopy(lm))
    assert merged.state_dict().keys() == before.keys()
    # float32, sums in another order
    torch.testing.assert_close(logits(merged, config)[seen], changed[seen], atol=2e-4, rtol=2e-4)


def test_only_the_changes_get_gradients():
    config = make_config(CASES["delay, label and text"])
    lm = add_lora_(make_lm(config).requires_grad_(False), LoRAConfig(rank=2))
    codes, conditions = make_codes(3, 5, cardinalities_for(config)), make_conditions(config, 3)
    strong_(lm).train().loss(codes, None, conditions).loss.backward()
    graded = {name for name, parameter in lm.named_parameters() if parameter.grad is not None}
    assert graded == {name for name, _ in lm.named_parameters() if is_lora(name)}
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in lm.parameters() if parameter.grad is not None)


def test_dropout_is_for_training_only():
    net = strong_(add_lora_(nn.Sequential(Linear(6, 6)), LoRAConfig(rank=2, targets=("0",), dropout=0.5)))
    x = torch.randn(4, 6)
    assert not torch.equal(net.train()(x), net.train()(x))
    assert torch.equal(net.eval()(x), net.eval()(x))


TARGETS = [
    (("attention.qkv",), 2),
    (("ffn",), 4),
    (("ffn.*", "attention.out"), 6),
    (("transformer.blocks.1",), 4),
    (("transformer.blocks",), 8),
    (("qkv", "transformer.blocks.0.attention.qkv"), 2),
]


@pytest.mark.parametrize(("targets", "count"), TARGETS)
def test_targets_are_names_or_their_last_parts(targets, count):
    lm = add_lora_(make_lm(make_config()), LoRAConfig(targets=targets))
    assert len(list(lora_layers(lm))) == count


def test_a_target_that_is_no_layer_is_named():
    with pytest.raises(ConfigError, match="lora.targets: no linear layer is called 'q_proj'; there are attention.out"):
        add_lora_(make_lm(make_config()), LoRAConfig(targets=("q_proj",)))
