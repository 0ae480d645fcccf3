"""Training low-rank changes: only they learn, checkpoints hold nothing else, the merged model and the adapter with its
base compute the same, and an adapter is never added to another model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_files import assert_same_run, killed_at
from safetensors.torch import load_file
from test_init import base, config_of, same, trainer, weights_of  # noqa: F401 - a fixture

import tessera
from tessera.cli.app import run
from tessera.configs.schema import ConfigError
from tessera.lm.checkpoints.adapter_directory import apply_adapter_, load_with_adapter, read_adapter
from tessera.lm.checkpoints.model_directory import load_model
from tessera.lm.layers.lora import is_lora, lora_layers
from tessera.train.export_run import export_run
from tessera.train.lm.trainer import LMTrainer, train_lm

LORA = {"rank": 2, "alpha": 6.0, "dropout": 0.1}


@pytest.fixture(scope="module")
def changed(tiny_data, base, tmp_path_factory) -> Path:  # noqa: F811
    """A finished run of low-rank changes."""
    out = tmp_path_factory.mktemp("lora") / "run"
    assert train_lm(config_of(tiny_data, {"init": {"from": str(base)}, "lora": LORA}, save_every=2), out)
    return out


def loss_of(lm, items) -> torch.Tensor:
    batch = items.batch(range(6))
    with torch.no_grad():
        return lm.loss(batch.codes, batch.lengths, batch.conditions).per_codebook


def test_the_first_step_is_that_of_the_base(tiny_data, base, tmp_path):  # noqa: F811
    made = trainer(config_of(tiny_data, {"init": {"from": str(base)}, "lora": LORA}), tmp_path / "a")
    given = load_model(base / "model")
    assert torch.equal(loss_of(made.average.model, made.parts.items), loss_of(given.lm, made.parts.items))
    assert {name for name, own in made.engine.objective.lm.named_parameters() if own.requires_grad} == {
        name for name, _ in made.engine.objective.lm.named_parameters() if is_lora(name)
    }
    assert len(list(lora_layers(made.engine.objective.lm))) == 8


def test_checkpoints_hold_the_changes_alone(base, changed):  # noqa: F811
    folder = changed / "steps" / "step-00000006"
    given = weights_of(base)
    for name in ("weights", "ema"):
        assert all(is_lora(tensor) for tensor in load_file(folder / f"{name}.safetensors"))
    moments = {name.rsplit(".", 1)[0] for name in load_file(folder / "optimizer.safetensors")}
    assert moments == load_file(folder / "weights.safetensors").keys()
    made = weights_of(changed)
    assert made.keys() == given.keys()
    moved = {name for name in given if not torch.equal(made[name], given[name])}
    targets = ("attention.qkv.weight", "attention.out.weight", "ffn.gate_up.weight", "ffn.down.weight")
    assert moved == {name for name in given if name.startswith("transformer.blocks.") and name.endswith(targets)}


@pytest.mark.sample(1)
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_resumed_run_equals_the_run_left_alone(tiny_data, base, tmp_path, engine):  # noqa: F811
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    lora = LORA | {"train": ["head"], "targets": ["attention.qkv"]}
    changes = {"init": {"from": str(base)}, "lora": lora, "engine": {"kind": engine}}
    config = config_of(tiny_data, changes, save_every=1)
    assert train_lm(config, tmp_path / "whole")
    with killed_at(LMTrainer, 3):
        train_lm(config, tmp_path / "cut")
    assert train_lm(config, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    given, made = weights_of(base), weights_of(tmp_path / "whole")
    assert {name for name in given if not torch.equal(given[name], made[name])} == {
        "head.weight",
        *(f"transformer.blocks.{n}.attention.qkv.weight" for n in range(2)),
    }


def test_a_changed_base_is_refused_when_resuming(tiny_data, base, changed, tmp_path):  # noqa: F811
    shutil.copytree(changed, tmp_path / "run")
    (tmp_path / "run" / "FINISHED").unlink()
    other = config_of(tiny_data, {"init": {"from": str(changed)}, "lora": LORA}, save_every=2, steps=8)
    with pytest.raises(ConfigError, match="init.from: the weights of .* are not those .* changes"):
        train_lm(other, tmp_path / "run", resume=True)
    moved = shutil.copytree(base / "model", tmp_path / "moved")
    same_base = config_of(tiny_data, {"init": {"from": str(moved)}, "lora": LORA}, save_every=2, steps=8)
    assert train_lm(same_base, tmp_path / "run", resume=True)


def test_the_export_of_a_run_is_the_merged_model(changed, tmp_path):
    made = export_run(changed, tmp_path / "again")
    assert same(load_file(made.folder / "lm.safetensors"), weights_of(changed))


@pytest.fixture(scope="module")
def adapter(changed, tmp_path_factory) -> Path:
    made = export_run(changed, tmp_path_factory.mktemp("adapter") / "a", adapter=True)
    assert made.what == "adapter"
    return made.folder


def test_an_adapter_with_its_base_is_the_merged_model(tiny_data, base, changed, adapter):  # noqa: F811
    assert {path.name for path in adapter.iterdir()} == {"adapter.json", "adapter.safetensors", "README.md"}
    tensors = load_file(adapter / "adapter.safetensors")
    assert tensors and all(is_lora(name) for name in tensors)
    loaded = load_with_adapter(base / "model", adapter)
    assert same(loaded.lm.state_dict(), weights_of(changed))  # both are merged by the same operations
    # slowly: W + alpha / rank B A, one matrix after another
    for name, weight in weights_of(base).items():
        module = name.removesuffix(".weight")
        wanted = weight.double()
        if f"{module}.lora_up" in tensors:
            wanted = wanted + 3.0 * tensors[f"{module}.lora_up"].double() @ tensors[f"{module}.lora_down"].double()
        torch.testing.assert_close(loaded.lm.state_dict()[name].double(), wanted, atol=1e-6, rtol=1e-6)


def test_generation_with_an_adapter(base, changed, adapter, tmp_path):  # noqa: F811
    one, two = tessera.load(base, adapter=adapter), tessera.load(changed)
    arguments = {"label": "a", "text": "one three", "seed": 4}
    assert torch.equal(one.generate(**arguments).codes[0], two.generate(**arguments).codes[0])
    half = tessera.load(base, adapter=adapter, dtype="bfloat16")
    assert next(half.lm.parameters()).dtype == torch.bfloat16
    tessera.load(base, adapter=adapter, weights="int8").generate(**arguments)
    command = ["generate", str(base / "model"), "--label", "a", "--text", "one", "--adapter", str(adapter)]
    assert run([*command, "-o", str(tmp_path / "x.png")]) == 0


def test_an_adapter_is_not_added_to_another_model(base, changed, adapter, tmp_path, capsys):  # noqa: F811
    with pytest.raises(ValueError, match=f"this adapter changes the model '{base}' .*, {changed}/model is another one"):
        tessera.load(changed, adapter=adapter)
    with pytest.raises(FileNotFoundError, match="nowhere: no adapter here"):
        tessera.load(base, adapter="nowhere")
    with pytest.raises(FileNotFoundError, match="this is a model, an adapter is needed here"):
        tessera.load(base, adapter=changed / "model")
    command = ["generate", str(changed / "model"), "--label", "a", "--adapter", str(adapter), "-o", str(tmp_path / "x")]
    assert run(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["generate", str(adapter), "-o", str(tmp_path / "x")]) == 2
    assert "this is an adapter, a model is needed here" in capsys.readouterr().err


def test_a_damaged_adapter_is_refused(base, adapter, tmp_path):  # noqa: F811
    copied = Path(shutil.copytree(adapter, tmp_path / "a"))
    for name in ("adapter.safetensors", "adapter.json"):
        whole = (copied / name).read_bytes()
        for place in (len(whole) // 3, len(whole) - 2):
            (copied / name).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(ValueError, match=name):
                load_with_adapter(base / "model", copied)
        (copied / name).write_bytes(whole[:-7])
        with pytest.raises(ValueError, match=name):
            load_with_adapter(base / "model", copied)
        (copied / name).write_bytes(whole)
    (copied / "adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter.safetensors: no such file; the adapter is incomplete"):
        load_with_adapter(base / "model", copied)


def test_what_is_more_than_its_base_has_no_adapter(tiny_data, base, tmp_path):  # noqa: F811
    changes = {"init": {"from": str(base)}, "lora": LORA, "lm.arrangement": {"kind": "parallel"}}
    assert train_lm(config_of(tiny_data, changes, steps=1), tmp_path / "a")
    with pytest.raises(ValueError, match="--adapter: lm.arrangement differs from that of .*; export the whole model"):
        export_run(tmp_path / "a", adapter=True)
    with pytest.raises(ValueError, match="--adapter is for a run with lora"):
        export_run(base, tmp_path / "b", adapter=True)


def test_modules_that_learn_as_a_whole_are_in_the_adapter(tiny_data, base, tmp_path):  # noqa: F811
    lora = {"rank": 1, "targets": ["ffn.down"], "train": ["head", "conditions.parts.label"]}
    assert train_lm(config_of(tiny_data, {"init": {"from": str(base)}, "lora": lora}, steps=2), tmp_path / "a")
    made = export_run(tmp_path / "a", adapter=True)
    assert made.folder == tmp_path / "a" / "adapter"
    whole = {name for name in load_file(made.folder / "adapter.safetensors") if not is_lora(name)}
    assert whole == {"head.weight", "conditions.parts.label.table.weight"}
    assert read_adapter(made.folder).lora.train == ("head", "conditions.parts.label")
    assert same(load_with_adapter(base / "model", made.folder).lm.state_dict(), weights_of(tmp_path / "a"))


def test_bfloat16_trains_the_changes(tiny_data, base, tmp_path):  # noqa: F811
    config = config_of(tiny_data, {"init": {"from": str(base)}, "lora": LORA}, steps=2, dtype="bfloat16", ema=0.0)
    assert train_lm(config, tmp_path / "a")
    assert not same(weights_of(tmp_path / "a"), weights_of(base))


def test_applying_leaves_random_numbers_alone(base, adapter):  # noqa: F811
    lm = load_model(base / "model").lm
    before = torch.get_rng_state()
    apply_adapter_(lm, adapter)
    assert torch.equal(torch.get_rng_state(), before)
    assert json.loads((adapter / "adapter.json").read_text())["base_name"] == str(base)
