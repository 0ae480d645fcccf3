"""A checkpoint as a model: the bytes of the finished run, of runs that were stopped, and the best of a run."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from run_files import before_step, killed_at
from safetensors.torch import load_file

from tessera.cli.app import run as tessera
from tessera.configs.folder_lock import FolderInUse, lock_folder
from tessera.configs.schema import check_config
from tessera.lm.checkpoints.model_directory import load_model
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer
from tessera.train.common.metrics import read_metrics
from tessera.train.engines.lr_schedule import learning_rate
from tessera.train.export_run import export_run, find_checkpoint
from tessera.train.lm.trainer import LMTrainer, train_lm
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, TokenizerTrainer, train_tokenizer

MASKED = {"lm": {"kind": "masked", "width": 16, "layers": 1, "heads": 2, "conditions": [{"kind": "label"}]}}
TEXT = {
    "lm": {
        **{"width": 16, "layers": 1, "heads": 2, "dropout": 0.1, "variable_length": True},
        "conditions": [{"kind": "text", "text": {"kind": "sentencepiece", "vocab_size": 24}}],
    }
}
FLOAT32 = {"export": {"dtype": "float32"}}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed(config, out, steps: int) -> None:
    """A run that dies before step `steps`."""
    with killed_at(LMTrainer, steps):
        train_lm(config, out, command="tessera train tiny.yaml")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "changes, train", [({}, {}), ({}, {"ema": 0.0}), (TEXT, {}), (MASKED, {}), (FLOAT32, {"ema": 0.0, "steps": 3})]
)
def test_the_last_step_gives_what_the_finished_run_gave(tiny_config, tmp_path, changes, train):
    out = tmp_path / "run"
    assert train_lm(tiny_config(changes, eval_every=2, **train), out, command="tessera train tiny.yaml")
    made = export_run(out, tmp_path / "again")
    assert files(tmp_path / "again") == files(out / "model")
    assert made.what == "model" and made.step == (train.get("steps") or 8)


def test_with_a_decoder_that_was_trained_further(tiny_config, tmp_path, capsys):
    out, config = tmp_path / "run", tiny_config()
    assert train_lm(config, out, command="tessera train tiny.yaml")
    for part in ("decoder", "encoder"):
        changed = load_tokenizer(config.tokenizer)
        name, tensor = next((n, t) for n, t in changed.net.named_parameters() if n.startswith(f"{part}."))
        tensor.data.mul_(2)
        make_tokenizer(changed.config, changed.net).save(tmp_path / part)
    given = ["--tokenizer", str(tmp_path / "decoder"), "--set", "generation.temperature=0.5"]
    assert tessera(["export", str(out), "--out", str(tmp_path / "new"), *given]) == 0
    assert f"tessera export {out} {' '.join(given)}\n" in (tmp_path / "new" / "README.md").read_text()
    old, new = load_model(out / "model"), load_model(tmp_path / "new")
    assert new.spec == load_tokenizer(tmp_path / "decoder").spec != old.spec
    assert all(a.equal(b) for a, b in zip(old.lm.state_dict().values(), new.lm.state_dict().values(), strict=True))
    assert tessera(["export", str(out), "--out", str(tmp_path / "bad"), "--tokenizer", str(tmp_path / "encoder")]) == 2
    assert f"they differ in {name}; only the decoder may be another" in capsys.readouterr().err


def test_also_when_it_was_stopped_there_and_ended_by_fewer_steps(tiny_config, tmp_path):
    out = tmp_path / "run"
    killed(tiny_config(save_every=3), out, 4)
    assert train_lm(tiny_config(save_every=3, steps=3), out, resume=True, command="tessera train --set train.steps=3")
    export_run(out, tmp_path / "again")
    assert files(tmp_path / "again") == files(out / "model")
    assert "--set train.steps=3" in (out / "model" / "README.md").read_text()


def test_a_killed_run_becomes_a_model(tiny_config, tmp_path):
    out = tmp_path / "run"
    killed(tiny_config(FLOAT32, save_every=3), out, 5)
    assert tessera(["export", str(out)]) == 0
    average = load_file(out / "steps" / "step-00000003" / "ema.safetensors")
    exported = load_file(out / "model" / "lm.safetensors")
    assert all(torch.equal(exported[name], average[name]) for name in average)
    assert "3 of 8 steps" in (out / "model" / "README.md").read_text()
    assert load_model(out / "model").labels == ["a", "b", "c"]
    assert train_lm(tiny_config(FLOAT32, save_every=3), out, resume=True)  # it is replaced by the finished one
    assert "8 steps" in (out / "model" / "README.md").read_text()
    assert tessera(["export", str(out), "--step", "6"]) == 0
    assert "6 of 8 steps" in (out / "model-6" / "README.md").read_text()
    assert "8 steps" in (out / "model" / "README.md").read_text()


def test_data_and_tokenizer_may_have_moved(tiny_config, tiny_data, tmp_path):
    moved = shutil.copytree(tiny_data, tmp_path / "moved")
    folders = {"data": {"shards": str(moved / "train"), "test": None}, "tokenizer": str(moved / "tokenizer")}
    out = tmp_path / "run"
    assert train_lm(tiny_config(folders, steps=2), out)
    shutil.rmtree(moved)
    with pytest.raises(FileNotFoundError, match=r"to change it, use --set"):
        export_run(out, tmp_path / "a")
    sets = [f"data.shards={tiny_data / 'train'}", f"tokenizer={tiny_data / 'tokenizer'}"]
    export_run(out, tmp_path / "a", sets=sets)
    assert load_file(tmp_path / "a" / "lm.safetensors").keys() == load_file(out / "model" / "lm.safetensors").keys()
    with pytest.raises(ValueError, match=r"data.shards: .* is not what .* was trained on"):
        export_run(out, tmp_path / "b", sets=[f"data.shards={tiny_data / 'test'}", sets[1]])
    with pytest.raises(ValueError, match=r"train.lr: this run was started with 0.01"):
        export_run(out, tmp_path / "b", sets=["train.lr=1", *sets])


@pytest.fixture
def losses(monkeypatch):
    """Set the test losses of evaluations by step."""
    given: dict[int, float] = {}

    def put(found: dict[int, float]) -> None:
        given.update(found)

    def evaluate(self):
        value = given[self.state.step]
        monkeypatch.setattr("tessera.train.lm.trainer.evaluate_tasks", lambda *a: (torch.tensor([value, value]), {}))
        return before(self)

    before = LMTrainer.evaluate
    monkeypatch.setattr(LMTrainer, "evaluate", evaluate)
    return put


def kept(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "steps").glob("step-*"))


def test_the_best_is_saved_when_it_is_found_and_stays(tiny_config, tmp_path, losses):
    losses({2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5})
    out = tmp_path / "run"
    config = tiny_config(eval_every=2, save_every=3, keep={"last": 1})
    assert train_lm(config, out)
    assert kept(out) == [4, 8]
    made = export_run(out, best=True)
    assert made.step == 4 and made.folder == out / "model-4"
    assert "| test | 1.0000 | 1.0000 1.0000 | 4 |" in (out / "model-4" / "README.md").read_text()


@pytest.mark.sample(1)
@pytest.mark.parametrize("at", [4, 5, 7])
def test_the_best_survives_a_kill(tiny_config, tmp_path, losses, at):
    losses({2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5})
    out = tmp_path / "run"
    config = tiny_config(eval_every=2, save_every=3, keep={"last": 1})
    killed(config, out, at)
    assert find_checkpoint(out, best=True).name == "step-00000004"
    assert train_lm(config, out, resume=True)
    assert kept(out) == [4, 8]


def test_none_several_and_the_earlier_of_equal_ones(tiny_config, tmp_path, losses):
    losses({2: 1.0, 4: 1.0, 6: 2.0, 8: 2.5})
    assert train_lm(tiny_config(eval_every=2, keep={"last": 1, "best": 0}), tmp_path / "none")
    assert kept(tmp_path / "none") == [8]
    assert train_lm(tiny_config(eval_every=2, keep={"last": 1, "best": 2}), tmp_path / "two")
    assert kept(tmp_path / "two") == [2, 4, 8] and find_checkpoint(tmp_path / "two", best=True).name == "step-00000002"


def test_a_loss_that_is_no_number_is_never_the_best_and_loses_nothing(tiny_config, tmp_path, losses):
    losses({2: float("nan"), 4: 2.0, 6: float("inf"), 8: float("nan")})
    assert train_lm(tiny_config(eval_every=2, keep={"last": 1}), tmp_path / "run")
    assert kept(tmp_path / "run") == [4, 8]
    assert [line["loss"] for line in read_metrics(tmp_path / "run") if line["split"] == "test"] == [None, 2, None, None]


def test_the_earlier_spelling_of_keep(tiny_config, tmp_path):
    assert train_lm(tiny_config(save_every=1, steps=5, keep_last=3, keep={"best": 0}), tmp_path / "run")
    assert kept(tmp_path / "run") == [3, 4, 5]
    with pytest.raises(ValueError, match="keep_last 3 is the earlier spelling of keep.last, which is 2"):
        tiny_config(keep_last=3, keep={"last": 2})


@pytest.mark.parametrize("steps", [5, 12])
def test_another_end_follows_the_schedule_of_the_new_end(tiny_config, tmp_path, capsys, steps):
    out = tmp_path / "run"
    killed(tiny_config(save_every=4), out, 4)
    capsys.readouterr()
    assert train_lm(tiny_config(save_every=4, steps=steps), out, resume=True)
    shape = {"peak": 0.01, "warmup_steps": 2, "min_ratio": 0.1}
    expected = [learning_rate(i, steps=8 if i < 4 else steps, **shape) for i in range(steps)]
    assert [line["lr"] for line in read_metrics(out) if line["split"] == "train"] == expected
    said = capsys.readouterr().err
    assert f"train.steps 8 -> {steps}: from step 5 on the learning rate is that of a run of {steps} steps" in said
    assert f"{expected[4]:.3g} where it was" in said and "falls to 0.001 in the last step" in said
    assert json.loads((out / "FINISHED").read_text())["step"] == steps


def test_ctrl_c_says_how_to_go_on_and_how_to_export(tiny_config, tmp_path, capsys):
    out = tmp_path / "a run"
    with before_step(LMTrainer, 4, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert train_lm(tiny_config(), out, command="tessera train tiny.yaml") is False
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-2:] == [
        "stopped after step 5 and saved; resume with: tessera train tiny.yaml --resume",
        f"or export the current model with: tessera export '{out}'",
    ]


def test_refusals(tiny_config, tmp_path):
    out = tmp_path / "run"
    killed(tiny_config(save_every=3), out, 5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for given, kind, said in (
        ({"run": tmp_path}, FileNotFoundError, "no run of tessera train or tessera tokenizer train here"),
        ({"run": out, "step": 4}, FileNotFoundError, "no checkpoint of step 4; available: 3"),
        ({"run": out, "best": True}, FileNotFoundError, "no checkpoint has a test loss .* with --step: 3"),
        ({"run": out, "best": True, "step": 3}, ValueError, "--step and --best were both given"),
        ({"run": out, "out": tmp_path / "full"}, FileExistsError, "full is not empty"),
    ):
        with pytest.raises(kind, match=said):
            export_run(**given)
    with open(out / "steps" / "step-00000003" / "ema.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0\0")
    with pytest.raises(ValueError, match="step-00000003: ema.safetensors is damaged"):
        export_run(out, step=3)
    shutil.rmtree(out / "steps")
    with pytest.raises(FileNotFoundError, match="it has no checkpoint yet; resume it"):
        export_run(out)
    assert tessera(["export", str(out)]) == 2


def test_a_run_in_training_can_only_be_exported_elsewhere(tiny_config, tmp_path):
    out = tmp_path / "run"
    killed(tiny_config(save_every=3), out, 5)
    with lock_folder(out, "tessera train"):
        with pytest.raises(FolderInUse):
            export_run(out)
        assert export_run(out, tmp_path / "elsewhere").step == 3


def tokenizer_config(tmp_path, **train) -> TokenizerTrainConfig:
    from PIL import Image

    folder = tmp_path / "pictures"
    if not folder.exists():
        folder.mkdir()
        for number in range(6):
            colours = torch.randint(0, 255, (8, 8, 3), generator=torch.Generator().manual_seed(number))
            Image.fromarray(colours.to(torch.uint8).numpy()).save(folder / f"{number}.png")
    quantizer = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 4, "kmeans_init": False}}
    settings = {
        "tokenizer": {
            **{"kind": "picture", "name": "t", "height": 8, "width": 8, "channels": 3, "features": 8, "blocks": 1},
            **{"latent_dim": 4, "quantizer": quantizer},
        },
        "data": {"kind": "folder", "path": str(folder)},
        "train": {"steps": 6, "batch": 2, "warmup_steps": 1, "save_every": 2, "keep_last": 9, "ema": 0.9, **train},
    }
    return check_config(settings, TokenizerTrainConfig)


@pytest.mark.sample(1)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_tokenizer(tmp_path, ema):
    out = tmp_path / "run"
    assert train_tokenizer(tokenizer_config(tmp_path, ema=ema), out, progress=False)
    made = export_run(out, tmp_path / "again")
    assert made.what == "tokenizer" and made.step == 6
    for name in ("config.json", "tokenizer.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    other = tmp_path / "killed"
    with killed_at(TokenizerTrainer, 4):
        train_tokenizer(tokenizer_config(tmp_path, ema=ema), other, progress=False)
    assert tessera(["export", str(other)]) == 0
    export_run(out, tmp_path / "four", step=4)
    assert load_tokenizer(other / "snapshot-4").spec == load_tokenizer(tmp_path / "four").spec
    with pytest.raises(FileExistsError, match="snapshot-4 contains a tokenizer already"):
        export_run(other)
    with pytest.raises(ValueError, match="a tokenizer run has no test loss"):
        export_run(other, best=True)


@pytest.mark.sample(1)
@pytest.mark.parametrize("steps", [4, 5, 8])
def test_a_tokenizer_may_end_elsewhere_too(tmp_path, capsys, steps):
    out = tmp_path / "run"
    with killed_at(TokenizerTrainer, 4):
        train_tokenizer(tokenizer_config(tmp_path), out, progress=False)
    assert train_tokenizer(tokenizer_config(tmp_path, steps=steps, log_every=1), out, resume=True) is not None
    said = "all of them are done" if steps == 4 else "from step 5 on the learning rate is that of a run of"
    assert f"steps of stage 'train' 6 -> {steps}: {said}" in capsys.readouterr().err
    rates = {line["step"]: line["lr"] for line in read_metrics(out) if line["split"] == "train"}
    shape = {"peak": 1e-3, "warmup_steps": 1, "min_ratio": 0.02}
    assert all(rates[i + 1] == learning_rate(i, steps=steps, **shape) for i in range(4, steps))
