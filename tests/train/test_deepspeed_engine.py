"""The DeepSpeed engine in one process without a launcher: the losses of plain torch, exact resuming, bad steps."""

import os
import pickle
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from tessera.configs.files import write_json
from tessera.lm.layers.input_embedding import CodesInputConfig
from tessera.train.distributed.process_group import join_world
from tessera.train.engines import deepspeed_engine
from tessera.train.engines.config import DeepSpeedEngineConfig
from tessera.train.engines.torch_engine import TorchEngine

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


def make(tiny, stage: int, micro_steps: int = 1, lm=None, **settings):
    from tessera.train.engines.deepspeed_engine import DeepSpeedEngine

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


@pytest.mark.slow
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
    first.collect().save(tmp_path)
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


@pytest.mark.slow
def test_frozen_code_vectors_follow_the_weights_to_bfloat16(tiny):
    lm = tiny.lm.model_copy(update={"input": CodesInputConfig()})
    engine = make(tiny, 1, lm=lm, dtype="bfloat16")
    losses = tiny.run(engine, 0, 10)
    assert losses[-1] < losses[0]


def save_as_before(engine, folder) -> None:
    """As earlier versions saved: DeepSpeed's own files."""
    state = {"universal_checkpoint_info": {}}
    engine.engine.save_checkpoint(str(folder), tag="deepspeed", client_state=state, save_latest=False)
    for script in [*folder.glob("*.py"), *folder.glob("deepspeed/*.py")]:
        script.unlink()
    described = {"kind": "deepspeed", "zero_stage": engine.config.zero_stage, "processes": 1, "steps": engine.steps}
    write_json(folder / "engine.json", described)


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=SLOW)])
@pytest.mark.parametrize("stage", [pytest.param(0, marks=SLOW), 1, pytest.param(2, marks=SLOW), 3])
def test_a_checkpoint_of_an_earlier_version_goes_on(tiny, tmp_path, stage, dtype):
    whole = make(tiny, stage, dtype=dtype)
    expected = tiny.run(whole, 0, 6)
    first = make(tiny, stage, dtype=dtype)
    begin = tiny.run(first, 0, 3)
    save_as_before(first, tmp_path)
    second = make(tiny, stage, dtype=dtype)
    second.load(tmp_path)
    assert begin + tiny.run(second, 3, 6) == expected
    assert same(copied(whole), copied(second))
    with pytest.raises(ValueError, match="saved by an earlier version, by 1 processes with ZeRO"):
        make(tiny, 2 if stage == 1 else 1, dtype=dtype).load(tmp_path)
    with pytest.raises(ValueError, match=f"resume with engine.kind=deepspeed and engine.zero_stage={stage}"):
        TorchEngine(tiny.objective(), tiny.settings(), tiny.world, 1).load(tmp_path)


class Payload:
    def __init__(self, marker, how):
        self.marker, self.how = marker, how

    def __reduce__(self):
        call = f"open({str(self.marker)!r}, 'w').close()"
        return (eval, (call,)) if self.how == "eval" else (os.system, (f"touch {self.marker}",))


@pytest.mark.sample(2)
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("stage", [0, 1, *(pytest.param(stage, marks=SLOW) for stage in (2, 3))])
def test_a_planted_pickle_never_runs_and_is_named(tiny, tmp_path, monkeypatch, stage, checked):
    """In every file of DeepSpeed's, in every way; also where the walk over the opcodes is blind (checked False), for
    DeepSpeed itself asks torch.load for anything."""
    if not checked:
        monkeypatch.setattr(deepspeed_engine, "check_pickles", lambda folder: None)
    good, marker = tmp_path / "good", tmp_path / "executed"
    engine = make(tiny, stage)
    tiny.run(engine, 0, 1)
    save_as_before(engine, good)
    files = [path.relative_to(good) for path in good.rglob("*.pt")]
    assert len(files) == (1 if stage == 0 else 2)
    for number, file in enumerate(files):
        for how in ("eval", "system", "beside", "plain"):
            bad = tmp_path / f"{number}-{how}"
            shutil.copytree(good, bad)
            held = torch.load(bad / file, weights_only=False)
            payload = Payload(marker, how)
            if how == "beside":  # everything that is wanted is there as well
                torch.save({**held, "more": payload}, bad / file)
            elif how == "plain":
                (bad / file).write_bytes(pickle.dumps({"module": payload}))
            else:
                torch.save({"module": payload}, bad / file)
            with pytest.raises(ValueError, match=rf"{file.name}: .*it was not loaded"):
                make(tiny, stage).load(bad)
            assert not marker.exists()
    assert torch.load.__module__ == "torch.serialization"


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=SLOW)])
@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), 3])
def test_a_state_goes_from_one_engine_to_the_other(tiny, tmp_path, stage, dtype):
    """Nothing of it is pickled, and what was divided or rounded does not show."""
    first = make(tiny, stage, dtype=dtype)
    tiny.run(first, 0, 4)
    first.collect().save(tmp_path / "deep")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [
        "engine.json", "optimizer.safetensors", "weights.safetensors"
    ]  # fmt: skip
    plain = TorchEngine(tiny.objective(dtype), tiny.settings(dtype=dtype), tiny.world, 1)
    plain.load(tmp_path / "deep")
    assert same(copied(first), copied(plain))
    plain.collect().save(tmp_path / "plain")
    for name in ("weights", "optimizer"):
        one, other = (load_file(tmp_path / kind / f"{name}.safetensors") for kind in ("deep", "plain"))
        assert same(one, other)
    if dtype == "float32":
        expected = tiny.run(first, 4, 8)
        assert tiny.run(plain, 4, 8) == pytest.approx(expected, abs=1e-5)
    again = make(tiny, stage, dtype=dtype)
    again.load(tmp_path / "plain")
    again.collect().save(tmp_path / "again")
    assert same(load_file(tmp_path / "again" / "optimizer.safetensors"), other)
