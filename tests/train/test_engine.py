"""The torch engine: accumulation equals one large batch, a bad step changes nothing, resuming equals going on."""

import pytest
import torch

from tessera.train.engines.torch_engine import TorchEngine


def make(tiny, micro_steps: int = 1, **settings) -> TorchEngine:
    options = tiny.settings(**settings)
    return TorchEngine(tiny.objective(options.dtype), options, tiny.world, micro_steps)


def copied(engine) -> dict[str, torch.Tensor]:
    with engine.weights(exact=True) as weights:
        return {name: weight.detach().clone() for name, weight in weights.items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def without_dropout(tiny):
    condition = tiny.lm.conditions[0].model_copy(update={"dropout": 0.0})
    return tiny.lm.model_copy(update={"dropout": 0.0, "conditions": (condition,)})


def test_micro_batches_add_up_to_the_whole_batch(tiny):
    """Rows differ in length, so a mean of means would be something else."""
    whole = TorchEngine(tiny.objective(lm=without_dropout(tiny)), tiny.settings(), tiny.world, 1)
    parts = TorchEngine(tiny.objective(lm=without_dropout(tiny)), tiny.settings(micro_batch=1), tiny.world, 4)
    first, second = tiny.run(whole, 0, 5), tiny.run(parts, 0, 5, micro=1)
    # float32 sums in another order
    torch.testing.assert_close(torch.tensor(first), torch.tensor(second), atol=1e-5, rtol=1e-5)
    assert first[-1] < first[0]


def test_the_loss_is_the_mean_over_codebooks_of_the_mean_over_terms(tiny):
    objective = tiny.objective().eval()
    codes, lengths, conditions = tiny.batch(0)
    loss, sums, counts = objective(codes, lengths, conditions)
    report = objective.lm.loss(codes, lengths, conditions)
    torch.testing.assert_close(loss, report.loss)
    torch.testing.assert_close((sums / counts).float(), report.per_codebook)
    assert counts.tolist() == [int(lengths.sum()) + 4, int(lengths.sum())]  # codebook 0 also predicts the end


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_step_leaves_everything_untouched(tiny, bad):
    engine, clean = make(tiny), make(tiny)
    tiny.run(engine, 0, 3)
    tiny.run(clean, 0, 3)
    before = copied(engine)
    tiny.run(engine, 3, 4, spoil=lambda loss, step: loss + bad)
    assert engine.last.skipped
    assert same(before, copied(engine))
    assert str(engine.optimizer.state_dict()["state"]) == str(clean.optimizer.state_dict()["state"])
    tiny.run(engine, 4, 5)
    assert not engine.last.skipped
    assert not same(before, copied(engine))


def test_a_bad_gradient_alone_is_a_bad_step(tiny):
    engine = make(tiny)
    tiny.run(engine, 0, 1)
    before = copied(engine)
    parameter = next(engine.objective.parameters())
    handle = parameter.register_hook(lambda gradient: gradient * torch.inf)
    tiny.run(engine, 1, 2)
    handle.remove()
    assert engine.last.skipped
    assert same(before, copied(engine))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_equals_left_alone(tiny, tmp_path, dtype):
    whole = make(tiny, dtype=dtype)
    expected = tiny.run(whole, 0, 8)
    first = make(tiny, dtype=dtype)
    begin = tiny.run(first, 0, 4)
    assert begin[-1] != begin[0]
    first.collect().save(tmp_path)
    second = make(tiny, dtype=dtype)
    second.load(tmp_path)
    assert begin + tiny.run(second, 4, 8) == expected
    assert same(copied(whole), copied(second))
    assert all(weight.dtype == torch.float32 for weight in copied(second).values())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors", ".safetensors"]


def test_bfloat16_follows_float32(tiny):
    exact, rough = tiny.run(make(tiny), 0, 10), tiny.run(make(tiny, dtype="bfloat16"), 0, 10)
    assert exact != rough
    torch.testing.assert_close(torch.tensor(exact), torch.tensor(rough), atol=0.05, rtol=0.05)  # 8 bits of mantissa


def test_vectors_are_not_decayed(tiny):
    engine = make(tiny, weight_decay=0.3)
    groups = engine.optimizer.param_groups
    decays = {group["weight_decay"]: {parameter.dim() for parameter in group["params"]} for group in groups}
    assert decays == {0.3: {2}, 0.0: {1}}
