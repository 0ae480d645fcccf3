"""Steps by the Triton kernels equal the steps op by op: on the CPU with Triton's interpreter, and on a GPU."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from short_calls import generate_codes
from small_models import (
    BIASES,
    BLOCKS,
    CASES,
    NOT_FUSED,
    EmbeddingInputConfig,
    TimeRopeConfig,
    count_stack_calls,
    make_codes,
    make_conditions,
)
from test_fused import CROSS, make_lm, steps

from tessera.generate.requests.settings import Length
from tessera.lm.kernels import cpu_gemv, triton_fused_block
from tessera.lm.kernels.triton_fused_block import TritonStack, matrix_of, norm_of, project
from tessera.lm.layers.norm import RMSNorm
from tessera.lm.quantization.packed_linear import PackedLinear, pack_

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = 5 if DEVICE == "cuda" else 2
"""Steps that are compared: the interpreter takes seconds for one."""
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}


def seldom(*values):
    """A case that the interpreter takes seconds for: without a GPU it is one of the slow tests."""
    return pytest.param(*values, marks=[pytest.mark.slow] if DEVICE == "cpu" else [])


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch):
    """Weights lie in memory as on a GPU, also on the CPU."""
    monkeypatch.setattr(cpu_gemv, "why_not", lambda: "not here")
    if DEVICE == "cpu":  # Triton's interpreter makes numbers of arrays with one element, which numpy no longer does
        monkeypatch.setattr(triton_fused_block, "supports_device", lambda x: True)
        monkeypatch.setattr(triton_fused_block, "PROGRAMS", 2)  # which run one after another
        monkeypatch.setattr(triton_fused_block, "MAX_OUTPUTS", 64)
        from triton.runtime import interpreter

        patch = interpreter._patch_lang_tensor

        def patched(tensor, scope):
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(1, 24, 64), (2, 40, 192), (3, 48, 128), seldom(4, 600, 64), seldom(2, 8, 2560)]
)
def test_project_is_the_layer(kind, norm, rows, outputs, inputs):
    """Sizes that no tile divides, a row and many, with bias and residual and without, each activation."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(inputs, outputs)
    packed = PackedLinear(layer.weight, layer.bias, kind, 32).to(DEVICE)
    module = {"none": None, "rms": RMSNorm(inputs), "layer": torch.nn.LayerNorm(inputs)}[norm]
    if module is not None:
        with torch.no_grad():
            [parameter.add_(torch.randn(inputs)) for parameter in module.parameters()]
        module.to(DEVICE)
    x = (torch.randn(rows, inputs) + 0.5).to(DEVICE)
    with torch.no_grad():
        plain = F.linear(x if module is None else module(x), packed.dequantized(), layer.bias.to(DEVICE))
        first, second = plain.chunk(2, dim=1)
        for act, wanted in enumerate((plain, F.gelu(plain), F.silu(first) * second)):
            residual = torch.randn_like(wanted)
            found = project(x, matrix_of(packed), norm_of(module), act, residual)
            torch.testing.assert_close(found, wanted + residual, rtol=2e-5, atol=1e-4)


def make_pair(case, rows, dtype=torch.float32, **settings):
    config, lm = make_lm(case, **settings)
    codes, conditions = make_codes(rows, 6, lm.arrangement.cardinalities), make_conditions(config, rows)
    return config, lm.to(DEVICE, dtype), codes.to(DEVICE), conditions.to(DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        case if number == 3 else seldom(case)
        for number, case in enumerate(dict.fromkeys([*[*CASES][::5], *BIASES]))
        if not case.startswith(NOT_FUSED)
    ],
)
def test_every_kind_of_model(case):
    _, lm, codes, conditions = make_pair(CASES[case], 3)
    wanted = steps(lm, codes, conditions, STEPS)
    calls = count_stack_calls(lm, TritonStack(lm.transformer))
    torch.testing.assert_close(steps(lm, codes, conditions, STEPS), wanted, rtol=2e-5, atol=2e-5)
    assert sum(calls) >= STEPS


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rows", [1, seldom(3), seldom(9)])
def test_rows(block, rows, dtype):
    _, lm, codes, conditions = make_pair((*CROSS, block), rows, dtype)
    wanted = steps(lm, codes, conditions, STEPS)
    calls = count_stack_calls(lm, TritonStack(lm.transformer))
    found = steps(lm, codes, conditions, STEPS)
    torch.testing.assert_close(found, wanted, rtol=CLOSE[dtype], atol=CLOSE[dtype])
    assert all(calls)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("cache", "counted"),
    [("static", True), ("ring", False), ("int8", False), ("int8", True), seldom("static", False), seldom("ring", True)],
)
def test_caches(cache, counted):
    """Counted by a number, and by a tensor as a CUDA graph needs it; behind padded prefixes and a window."""
    case = ("delay", "text prefix", TimeRopeConfig(), EmbeddingInputConfig(), 2, True, BLOCKS[0])
    _, lm, codes, conditions = make_pair(case, 3, window=3 if cache != "int8" else None)

    def run():
        state = lm.start(conditions, 6, 3, cache=cache)
        ids = torch.cat([lm.start_ids(3)[..., None], lm.arrangement.arrange(codes).ids], dim=2)
        found = [lm.read(state, ids[:, :, 0])]
        if counted:
            state.cache.position = torch.tensor(state.cache.length, device=DEVICE)
        for s in range(1, STEPS):
            at = torch.tensor(s, device=DEVICE)
            found.append(lm.read_at(state, ids[:, :, s], at) if counted else lm.read(state, ids[:, :, s]))
        return torch.stack(found)

    wanted = run()
    calls = count_stack_calls(lm, TritonStack(lm.transformer))
    torch.testing.assert_close(run(), wanted, rtol=2e-5, atol=2e-5)
    assert any(calls) == (cache != "int8")


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", seldom("int4")])
def test_packed_models(weights, monkeypatch):
    _, lm, codes, conditions = make_pair((*CROSS, BLOCKS[0]), 2)
    pack_(lm, weights)
    lm.transformer.fused = None
    wanted = steps(lm, codes, conditions, STEPS)
    calls = count_stack_calls(lm, TritonStack(lm.transformer))
    torch.testing.assert_close(steps(lm, codes, conditions, STEPS), wanted, rtol=2e-5, atol=2e-5)
    assert all(calls)
    monkeypatch.setattr(triton_fused_block, "MAX_ROWS", 1)
    steps(lm, codes, conditions, STEPS)
    assert not calls[-1]  # many rows of packed weights are for the blocks


@pytest.mark.slow
def test_weights_that_move_are_found_again():
    _, lm, codes, conditions = make_pair((*CROSS, BLOCKS[0]), 2)
    calls = count_stack_calls(lm, TritonStack(lm.transformer))
    before = steps(lm, codes, conditions, STEPS)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.data = parameter.data.clone()
    torch.testing.assert_close(steps(lm, codes, conditions, STEPS), before, rtol=0, atol=0)
    assert all(calls)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("weights", ["plain", "bfloat16", "int8", "int4"])
def test_graphs_of_fused_steps_give_the_codes_of_eager_ones(weights):
    _, lm, _, conditions = make_pair((*CROSS, BLOCKS[0]), 2)
    if weights != "plain":
        pack_(lm, weights)
    lm.transformer.fused = TritonStack(lm.transformer)
    found = [
        generate_codes(lm, conditions, [1, 2], Length(20, fixed=True), guidance=2.0, step=step)
        for step in ("eager", "graph")
    ]
    assert found[0].codes.equal(found[1].codes)
