"""Fused steps of a block equal the block op by op: every kind of block, condition, position and cache."""

import copy

import pytest
import torch
from small_models import (
    BIASES,
    BLOCKS,
    CASES,
    NOT_FUSED,
    EmbeddingInputConfig,
    TimeRopeConfig,
    make_codes,
    make_conditions,
    make_config,
)
from small_models import make_lm as make_small

from tessera.lm.kernels import cpu_gemv
from tessera.lm.kv_cache.base import AttentionInputs
from tessera.lm.ops.rotary import rotate
from tessera.lm.quantization.packed_linear import pack_

pytestmark = pytest.mark.skipif(bool(cpu_gemv.why_not()), reason=cpu_gemv.why_not())

CROSS = ("delay", "text cross", TimeRopeConfig(), EmbeddingInputConfig(), 2, True)


def make_lm(case, **settings):
    """With norms that are not all ones, and heads of 16."""
    config = make_config(case, width=64, **settings)
    lm = make_small(config)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            elif name.startswith("transformer"):
                parameter.mul_(2)
    return config, lm


def steps(lm, codes, conditions, num_steps=5, **settings):
    """Hidden states [B, S, D] read one step at a time."""
    state = lm.start(conditions, num_steps, len(codes), codes.shape[2], **settings)
    arranged = lm.arrangement.arrange(codes).ids
    read = torch.cat([lm.start_ids(len(codes))[..., None], arranged], dim=2)
    return torch.stack([lm.read(state, read[:, :, s]) for s in range(num_steps)], dim=1)


def count_calls(lm):
    """A list that grows with each fused step of a block, alone or in a stack."""
    calls, stack = [], lm.transformer.fused.__call__

    def counted_stack(*arguments):
        found = stack(*arguments)
        calls.extend([] if found is None else [1] * len(lm.transformer.blocks))
        return found

    lm.transformer.fused = counted_stack
    for block in lm.transformer.blocks:
        fused = block.fused.__call__

        def counted(*arguments, fused=fused):
            calls.append(1)
            return fused(*arguments)

        block.fused = type("Counted", (), {"supports": block.fused.supports, "__call__": staticmethod(counted)})()
    return calls


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", dict.fromkeys([*[*CASES][::5], *BIASES]))
def test_every_kind_of_model(case):
    config, lm = make_lm(CASES[case])
    codes, conditions = make_codes(3, 6, lm.arrangement.cardinalities), make_conditions(config, 3)
    wanted = steps(lm, codes, conditions)
    pack_(lm, "float32")
    if case.startswith(NOT_FUSED):  # not supported: as before, with packed layers
        assert lm.transformer.fused is None and all(block.fused is None for block in lm.transformer.blocks)
        torch.testing.assert_close(steps(lm, codes, conditions), wanted, rtol=2e-5, atol=2e-5)
        return
    calls = count_calls(lm)
    torch.testing.assert_close(steps(lm, codes, conditions), wanted, rtol=2e-5, atol=2e-5)
    assert len(calls) >= 5 * config.layers  # a label's prefix is one position, and goes this way as well


@pytest.mark.sample(4)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 17])
def test_rows(block, rows):
    config, lm = make_lm((*CROSS, block))
    codes, conditions = make_codes(rows, 6), make_conditions(config, rows)
    wanted = steps(lm, codes, conditions)
    calls = count_calls(pack_(lm, "float32"))
    torch.testing.assert_close(steps(lm, codes, conditions), wanted, rtol=2e-5, atol=2e-5)
    assert len(calls) == (5 * config.layers if rows <= cpu_gemv.MAX_ROWS else 0)


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", cpu_gemv.KINDS)
@pytest.mark.parametrize("block", BLOCKS)
def test_packed_kinds_in_bfloat16(kind, block):
    """As far from float32 as op by op."""
    config, lm = make_lm((*CROSS, block))
    pack_(lm, kind)
    codes, conditions = make_codes(3, 6), make_conditions(config, 3)
    exact = steps(lm, codes, conditions)
    lm.bfloat16()
    fused = steps(lm, codes, conditions)
    assert fused.dtype == torch.bfloat16
    for one in (lm.transformer, *lm.transformer.blocks):
        one.fused = None
    plain = steps(lm, codes, conditions)
    error, of_plain = (fused.float() - exact).square().mean().sqrt(), (plain.float() - exact).square().mean().sqrt()
    assert error < 1.3 * of_plain and error < 0.05 * exact.square().mean().sqrt()


@pytest.mark.parametrize("window", [2, 3])
def test_a_ring_of_positions(window):
    config, lm = make_lm(("delay", "label prefix", TimeRopeConfig(), EmbeddingInputConfig(), 2, False), window=window)
    codes, conditions = make_codes(3, 6), make_conditions(config, 3)
    wanted = steps(lm, codes, conditions, cache="static")
    calls = count_calls(pack_(lm, "float32"))
    for cache in ("static", "ring"):
        torch.testing.assert_close(steps(lm, codes, conditions, cache=cache), wanted, rtol=2e-5, atol=2e-5)
    assert calls


@pytest.mark.sample(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("cache", ["static", "ring", "int8"])
def test_all_blocks_in_one_call_are_the_blocks_one_by_one(cache, block, dtype):
    """Up to the rounding of the last norm; conditions in front and beside, more steps than a window."""
    for case in (CROSS, ("delay", "text prefix", TimeRopeConfig(), EmbeddingInputConfig(), 2, False)):
        config, lm = make_lm((*case, block), window=3)
        pack_(lm, "int8").to(dtype)
        codes, conditions = make_codes(3, 6), make_conditions(config, 3)
        calls, stack = count_calls(lm), lm.transformer.fused
        found, num_calls = steps(lm, codes, conditions, cache=cache), len(calls)
        assert num_calls == 5 * config.layers
        taken = []
        lm.transformer.fused = lambda *arguments, taken=taken, stack=stack: taken.append(stack(*arguments))
        by_block = steps(lm, codes, conditions, cache=cache)
        assert all((one is None) == (cache == "int8") for one in taken[-5:])
        torch.testing.assert_close(found, by_block, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


class Unturned:
    """A cache that takes keys before rotation and gives float64 back."""

    rotated_keys = False

    def __init__(self):
        self.keys, self.values = [], []

    def begin(self, num_positions, table):
        self.table = table

    def write(self, layer, keys, values):
        if layer == 0:
            self.keys.append([])
            self.values.append([])
        self.keys[-1].append(keys)
        self.values[-1].append(values)
        past = torch.cat([step[layer] for step in self.keys], dim=2).transpose(1, 2)
        seen = torch.cat([step[layer] for step in self.values], dim=2)
        return AttentionInputs(rotate(past, self.table).transpose(1, 2).double(), seen.double(), None, False)

    def slot(self):
        raise AssertionError("only caches of rotated keys are asked")

    def advance(self, num_positions):
        pass


def test_a_cache_that_rotates_by_itself_and_gives_other_numbers():
    config, lm = make_lm(CROSS)
    codes, conditions = make_codes(3, 6), make_conditions(config, 3)
    wanted = steps(lm, codes, conditions)
    pack_(lm, "float32")
    state = lm.start(conditions, 5, 3)
    cache = Unturned()
    read = torch.cat([lm.start_ids(3)[..., None], lm.arrangement.arrange(codes).ids], dim=2)
    for s in range(5):
        x = lm.input(read[:, :, s : s + 1])
        table = lm.positions.table(torch.arange(s + 1), None, 0, None)
        with torch.no_grad():
            hidden = lm.transformer(x, table, memory=state.memory, cache=cache)
        torch.testing.assert_close(hidden[:, 0], wanted[:, s], rtol=2e-5, atol=2e-5)


def test_a_copy_is_a_model_of_its_own():
    config, lm = make_lm(CROSS)
    pack_(lm, "int8")
    codes, conditions = make_codes(2, 6), make_conditions(config, 2)
    wanted = steps(lm, codes, conditions)
    copied = copy.deepcopy(lm)
    for block in lm.transformer.blocks:
        block.ffn.down.numbers.zero_()
    torch.testing.assert_close(steps(copied, codes, conditions), wanted, rtol=0, atol=0)
    assert not torch.equal(steps(lm, codes, conditions), wanted)
