"""Fast steps of a model as it is loaded equal its plain ones, and its plain layers stay what they are."""

import copy

import pytest
import torch
from small_models import (
    BLOCKS,
    CARDINALITIES,
    CASES,
    NOT_FUSED,
    count_stack_calls,
    make_codes,
    make_conditions,
    make_spec,
)
from test_fused import CROSS, make_lm, steps

import tessera
from tessera.lm.config import LMConfig
from tessera.lm.kernels import cpu_gemv
from tessera.lm.kernels.cpu_gemv import MAX_ROWS
from tessera.lm.layers.input_embedding import CodesInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.coarse_to_fine import CoarseToFine
from tessera.lm.models.masked import MaskedConfig, MaskedLM
from tessera.lm.quantization import cpu_fast_decode
from tessera.lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_, prepare_fast_cpu_decode_
from tessera.lm.quantization.packed_linear import PackedLinear
from tessera.tokenize.bundled import bundled_models

pytestmark = pytest.mark.skipif(bool(cpu_gemv.why_not()), reason=cpu_gemv.why_not())


TIGHT = {"rtol": 2e-5, "atol": 2e-5}


def copied_kinds(lm):
    """How the copies of the matrices are stored."""
    blocks = [fused.block for fused in lm.transformer.fused._made[1].blocks]
    layers = [lm.head.fused._made[1], *(layer for block in blocks for layer in block.modules())]
    return {layer.kind for layer in layers if isinstance(layer, PackedLinear)}


@pytest.mark.sample(4)
@pytest.mark.parametrize("case", [case for case in [*CASES][1::5] if not case.startswith(NOT_FUSED)])
@pytest.mark.parametrize("rows", [1, MAX_ROWS, MAX_ROWS + 1])
def test_steps(case, rows):
    config, lm = make_lm(CASES[case])
    codes, conditions = make_codes(rows, 6, lm.arrangement.cardinalities), make_conditions(config, rows)
    wanted = steps(lm, codes, conditions)
    calls = count_stack_calls(lm, enable_fast_cpu_decode_(lm).transformer.fused)
    torch.testing.assert_close(steps(lm, codes, conditions), wanted, **TIGHT)
    assert all(calls[-5:]) if rows <= MAX_ROWS else not any(calls)


@pytest.mark.parametrize("block", BLOCKS)
def test_bfloat16_is_as_near(block):
    config, lm = make_lm((*CROSS, block))
    codes, conditions = make_codes(3, 6), make_conditions(config, 3)
    exact = steps(lm, codes, conditions)
    lm.bfloat16()
    plain = steps(lm, codes, conditions)
    calls = count_stack_calls(lm, enable_fast_cpu_decode_(lm).transformer.fused)
    found = steps(lm, codes, conditions)
    assert all(calls[-5:]) and found.dtype == torch.bfloat16
    assert (found.float() - exact).square().mean() < 1.5 * (plain.float() - exact).square().mean()


def test_the_model_itself_is_left_as_it_was():
    config, lm = make_lm(CROSS)
    before = copy.deepcopy(lm)
    enable_fast_cpu_decode_(lm)
    for (name, found), (wanted_name, wanted) in zip(lm.state_dict().items(), before.state_dict().items(), strict=True):
        assert name == wanted_name and found.equal(wanted)
    assert all(parameter.requires_grad for parameter in lm.parameters())
    codes, conditions = make_codes(2, 6), make_conditions(config, 2)
    assert steps(copy.deepcopy(lm), codes, conditions).equal(steps(lm, codes, conditions))


def test_training_forgets_the_copies():
    config, lm = make_lm(CROSS)
    enable_fast_cpu_decode_(lm).train()
    with torch.no_grad():
        [parameter.mul_(1.5) for parameter in lm.parameters()]
    lm.eval()
    codes, conditions = make_codes(2, 6), make_conditions(config, 2)
    found = steps(lm, codes, conditions)
    lm.transformer.fused = None
    assert steps(lm, codes, conditions).equal(found)


def test_large_models_and_models_of_many_rows_are_left_alone(monkeypatch):
    assert (
        enable_fast_cpu_decode_(MaskedLM(MaskedConfig(width=16, heads=1), make_spec(CARDINALITIES))).transformer.fused
        is None
    )
    _, lm = make_lm(CROSS)
    monkeypatch.setattr(cpu_fast_decode, "MAX_BYTES", sum(weight.nbytes for weight in lm.transformer.parameters()) - 1)
    assert enable_fast_cpu_decode_(lm).transformer.fused is None
    monkeypatch.setattr(cpu_fast_decode, "MAX_BYTES", cpu_fast_decode.MAX_BYTES + 1)
    assert enable_fast_cpu_decode_(lm).transformer.fused is not None


@torch.no_grad()
def test_large_models_in_bfloat16_are_packed(monkeypatch):
    config, lm = make_lm(CROSS)
    monkeypatch.setattr(cpu_fast_decode, "MAX_BYTES", 1)
    codes, conditions = make_codes(3, 6), make_conditions(config, 3)
    exact = steps(lm, codes, conditions)
    assert prepare_fast_cpu_decode_(lm) is lm and lm.transformer.fused is None and lm.head.weight is not None
    plain = steps(lm.bfloat16(), codes, conditions)
    prepare_fast_cpu_decode_(lm)
    assert lm.transformer.fused is not None and lm.head.weight is None
    found = steps(lm, codes, conditions)
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).square().mean() < 1.5 * (plain.float() - exact).square().mean()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, MAX_ROWS, MAX_ROWS + 1])
def test_the_parallel_head(rows, dtype):
    _, lm = make_lm(CROSS)
    head, hidden = lm.to(dtype).head, torch.randn(rows, lm.config.width).to(dtype)
    plain = head.predict(hidden, 0, None)
    enable_fast_cpu_decode_(lm)
    assert (head.fused(hidden) is None) == (rows > MAX_ROWS)
    torch.testing.assert_close(head.predict(hidden, 0, None), plain, **(TIGHT if dtype == torch.float32 else {}))
    head.weight.data[3] = 9
    assert head.start(rows, dtype, hidden.device) is None
    torch.testing.assert_close(head.predict(hidden, 0, None), head(hidden), **(TIGHT if dtype == torch.float32 else {}))
    lm.train()
    assert head.fused is None


@torch.no_grad()
@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_the_input_of_code_vectors(combine):
    spec = make_spec()
    vectors = torch.randn(spec.num_codebooks, max(spec.cardinalities), 5)
    config = LMConfig(width=32, layers=1, heads=2, input=CodesInputConfig(combine=combine), variable_length=True)
    lm = enable_fast_cpu_decode_(TokenLM(config, spec, vectors).eval())
    embedding = lm.input
    for rows, steps_at_once in ((1, 1), (3, 5), (MAX_ROWS, 1)):
        ids = torch.stack([torch.randint(V, (rows, steps_at_once)) for V in lm.arrangement.input_sizes], dim=1)
        assert lm.fused(ids) is not None
        torch.testing.assert_close(lm.embed_step(ids), embedding(ids), **TIGHT)
    embedding.linear.weight.data[2, 3] += 1
    embedding.specials.weight.data[1] += 1
    lm.start(num_rows=1, capacity=4)
    torch.testing.assert_close(lm.embed_step(ids), embedding(ids), **TIGHT)
    assert lm.train().fused is None


def test_weights_that_are_bfloat16_numbers_are_copied_in_half_the_bytes():
    config, lm = make_lm(CROSS)
    assert copied_kinds(enable_fast_cpu_decode_(lm)) == {"float32"}
    lm.bfloat16().float()
    codes, conditions = make_codes(2, 6), make_conditions(config, 2)
    enable_fast_cpu_decode_(lm)
    found = steps(lm, codes, conditions)
    assert copied_kinds(lm) == {"bfloat16"} and found.dtype == torch.float32
    for part in lm.modules():
        part.fused = None
    torch.testing.assert_close(found, steps(lm, codes, conditions), **TIGHT)


def test_a_loaded_model_is_fast():
    for name in bundled_models():
        lm = tessera.load(name).lm
        first = lm.coarse if isinstance(lm, CoarseToFine) else lm
        assert isinstance(first.transformer.fused, cpu_fast_decode.FastStack) != isinstance(first, MaskedLM)
