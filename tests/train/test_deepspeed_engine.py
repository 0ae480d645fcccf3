"""The DeepSpeed engine in one process without a launcher: the losses of plain torch, exact resuming, bad steps."""

import pickle

import pytest
import torch

from tessera.lm.inputs import CodesInputConfig
from tessera.train.engine import TorchEngine
from tessera.train.lm_config import DeepSpeedEngineConfig
from tessera.train.world import join_world

pytest.importorskip("deepspeed")


def make(tiny, stage: int, micro_steps: int = 1, lm=None, **settings):
    from tessera.train.deepspeed_engine import DeepSpeedEngine

    options = tiny.settings(**settings)
    config = DeepSpeedEngineConfig(zero_stage=stage, bucket_elements=10_000, persistence_elements=0)
    return DeepSpeedEngine(
        tiny.objective(options.dtype, lm or tiny.lm), config, options, join_world("cpu", always=True), micro_steps
    )


def copied(engine) -> dict[str, torch.Tensor]:
    with engine.weights(exact=True) as weights:
        return {name: weight.detach().float().clone() for name, weight in weights.items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


STAGES = [0, 1, 2, 3]
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=SLOW), 1, pytest.param(2, marks=SLOW), pytest.param(3, marks=SLOW)]
)
@pytest.mark.parametrize("micro", [pytest.param(4, marks=SLOW), 2])
def test_same_losses_as_plain_torch(tiny, stage, micro):
    plain = TorchEngine(tiny.objective(), tiny.settings(micro_batch=micro), tiny.world, 4 // micro)
    deep = make(tiny, stage, 4 // micro, micro_batch=micro)
    expected, found = tiny.run(plain, 0, 8, micro), tiny.run(deep, 0, 8, micro)
    # sums in another order
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert deep.last.lr == plain.last.lr
    assert deep.last.grad_norm == pytest.approx(plain.last.grad_norm, rel=1e-4)
    weights = copied(deep)
    for name, weight in copied(plain).items():
        torch.testing.assert_close(
            weights[name], weight, atol=1e-4, rtol=1e-3
        )  # Adam divides by roots of tiny gradients


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_saved_and_loaded_equals_left_alone(tiny, tmp_path, stage, dtype):
    whole = make(tiny, stage, dtype=dtype)
    expected = tiny.run(whole, 0, 8)
    first = make(tiny, stage, dtype=dtype)
    begin = tiny.run(first, 0, 4)
    first.save(tmp_path)
    second = make(tiny, stage, dtype=dtype)
    second.load(tmp_path)
    assert begin + tiny.run(second, 4, 8) == expected
    assert same(copied(whole), copied(second))
    assert not list(tmp_path.rglob("*.py")) and not (tmp_path / "latest").exists()


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=SLOW)])
@pytest.mark.parametrize(
    "stage", [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), pytest.param(3, marks=SLOW)]
)
def test_a_bad_step_leaves_the_weights_untouched(tiny, stage, dtype):
    engine = make(tiny, stage, 2, dtype=dtype, micro_batch=2)
    tiny.run(engine, 0, 3, micro=2)
    before = copied(engine)
    for step, bad in ((3, torch.nan), (4, torch.inf)):
        tiny.run(engine, step, step + 1, micro=2, spoil=lambda loss, step, bad=bad: loss + bad)
        assert engine.last.skipped
        assert same(before, copied(engine))
    tiny.run(engine, 5, 6, micro=2)
    assert not engine.last.skipped
    assert not same(before, copied(engine))


@pytest.mark.slow
def test_bfloat16_keeps_exact_weights(tiny):
    for stage in STAGES:
        engine = make(tiny, stage, dtype="bfloat16")
        losses = tiny.run(engine, 0, 10)
        assert losses[-1] < losses[0]
        exact = copied(engine)
        assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in exact.values())
        with engine.weights() as weights:
            for name, weight in weights.items():
                torch.testing.assert_close(weight.float(), exact[name].bfloat16().float(), atol=0, rtol=0)


def test_frozen_code_vectors_follow_the_weights_to_bfloat16(tiny):
    lm = tiny.lm.model_copy(update={"input": CodesInputConfig()})
    engine = make(tiny, 1, lm=lm, dtype="bfloat16")
    losses = tiny.run(engine, 0, 10)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_refuses_a_pickle_that_would_run_code(tiny, tmp_path):
    engine = make(tiny, 1)
    engine.save(tmp_path)
    target = next(tmp_path.rglob("*model_states.pt"))

    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    torch.save({"module": Payload()}, target, pickle_module=pickle)
    with pytest.raises(ValueError, match=r"loading it would run .*open; it was not loaded"):
        make(tiny, 1).load(tmp_path)
    assert not (tmp_path / "executed").exists()
