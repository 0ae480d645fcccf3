"""Fast steps of a model as it is loaded equal its plain ones, and its plain layers stay what they are."""

import copy

import pytest
import torch
from small_models import BLOCKS, CARDINALITIES, CASES, count_stack_calls, make_codes, make_conditions, make_spec
from test_fused import CROSS, make_lm, steps

import tessera
from tessera.lm.kernels import cpu_gemv
from tessera.lm.kernels.cpu_gemv import MAX_ROWS
from tessera.lm.models.coarse_to_fine import CoarseToFine
from tessera.lm.models.masked import MaskedConfig, MaskedLM
from tessera.lm.quantization import cpu_fast_decode
from tessera.lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_
from tessera.tokenize.bundled import bundled_models

pytestmark = pytest.mark.skipif(bool(cpu_gemv.why_not()), reason=cpu_gemv.why_not())


@pytest.mark.sample(4)
@pytest.mark.parametrize("case", list(CASES)[1::5])
@pytest.mark.parametrize("rows", [1, MAX_ROWS, MAX_ROWS + 1])
def test_steps(case, rows):
    config, lm = make_lm(CASES[case])
    codes, conditions = make_codes(rows, 6, lm.arrangement.cardinalities), make_conditions(config, rows)
    wanted = steps(lm, codes, conditions)
    calls = count_stack_calls(lm, enable_fast_cpu_decode_(lm).transformer.fused)
    torch.testing.assert_close(steps(lm, codes, conditions), wanted, rtol=2e-5, atol=2e-5)
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


def test_a_loaded_model_is_fast():
    for name in bundled_models():
        lm = tessera.load(name).lm
        first = lm.coarse if isinstance(lm, CoarseToFine) else lm
        assert isinstance(first.transformer.fused, cpu_fast_decode.FastStack) != isinstance(first, MaskedLM)
