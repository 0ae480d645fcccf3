"""A whole run on tiny shards: it finishes, refuses what does not belong, stops where it should."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from run_files import assert_same_run
from safetensors.torch import load_file

from tessera.configs.files import DiskFull, read_sealed_json, write_sealed_json
from tessera.configs.folder_lock import lock_folder
from tessera.configs.schema import ConfigError, check_config
from tessera.lm.checkpoints.model_directory import load_model
from tessera.tokenize.data.shard_reader import Shards
from tessera.train.common.metrics import read_metrics
from tessera.train.distributed.process_group import ONE_PROCESS, ProcessGroup
from tessera.train.engines.auto import saved_engine
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.run_state import RunState
from tessera.train.lm.setup import open_parts
from tessera.train.lm.trainer import LMTrainer, TrainingFailed, cut_like, train_lm


def make_config(data, changes: dict | None = None, **train) -> TrainConfig:
    settings = {
        "name": "tiny",
        "seed": 3,
        "device": "cpu",
        "data": {"shards": str(data / "train"), "test": str(data / "test"), "pool_batches": 2},
        "tokenizer": str(data / "tokenizer"),
        "lm": {
            "width": 16,
            "layers": 1,
            "heads": 2,
            "dropout": 0.1,
            "variable_length": True,
            "arrangement": {"kind": "delay"},
            "conditions": [
                {"kind": "label", "dropout": 0.3},
                {"kind": "text", "dropout": 0.3, "text": {"kind": "sentencepiece", "vocab_size": 24}},
            ],
        },
        "train": {
            "steps": 8,
            "batch": 4,
            "lr": 0.01,
            "warmup_steps": 2,
            "log_every": 1,
            "eval_every": 4,
            "save_every": 3,
            "ema": 0.9,
            **train,
        },
        **(changes or {}),
    }
    return check_config(settings, TrainConfig)


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory):
    """A run left alone."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train_lm(make_config(tiny_data), out, command="tessera train tiny.yaml")
    return out


def test_a_finished_run(tiny_data, whole):
    lines = read_metrics(whole)
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 9))
    assert [line["step"] for line in lines if line["split"] == "test"] == [4, 8]
    assert all(len(line["loss_per_codebook"]) == 2 for line in lines)
    assert json.loads((whole / "FINISHED").read_text())["step"] == 8
    model = load_model(whole / "model")
    assert model.labels == Shards(tiny_data / "train").label_names
    assert model.text is not None and (whole / "text" / "text.model").exists()
    card = (whole / "model" / "README.md").read_text()
    assert "tessera train tiny.yaml" in card and "| test |" in card and "vocab_size: 24" in card
    saved = json.loads((whole / "steps" / "step-00000008" / "run.json").read_text())
    assert saved["attention"]["name"] == "sdpa" and saved["attention"]["because"]
    assert saved["tokenizer"] == model.spec.fingerprint and saved["config"]["train"]["lr"] == 0.01
    assert saved["sampler"] == {"seed": 3, "step": 8}


def packed_config(data, **train) -> TrainConfig:
    folders = {"shards": str(data / "train"), "test": str(data / "test")}
    return make_config(data, {"data": {**folders, "packing": {"kind": "best_fit", "steps": 20}}}, batch=2, **train)


def test_packed_items_have_the_loss_of_padded_ones(tiny_data, tmp_path):
    trainer = LMTrainer(
        packed_config(tiny_data, micro_batch=1), tmp_path / "run", ProcessGroup(0, 1, torch.device("cpu"))
    )
    trainer.engine.model.eval()
    rows = np.hstack(trainer.stepper.sampler.batch(0))
    batch = trainer.parts.items.batch(rows)
    found = trainer.engine.model(batch.codes, batch.lengths, batch.conditions)
    trainer.engine.model.packed = False
    expected = trainer.engine.model(batch.codes, batch.lengths, batch.conditions)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_packed_is_refused(tiny_data):
    packing = {"packing": {"kind": "best_fit", "steps": 20}, "shards": "x"}
    for changes, said in (
        ({"data": {**packing, "pool_batches": 2}}, "pool_batches is for packing padded, not for best_fit"),
        ({"data": packing, "lm": {"kind": "masked"}}, "found kind 'masked'; use packing kind padded"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_config(tiny_data, changes)
    with pytest.raises(ConfigError, match=r"data.packing best_fit: patches of frames \(train.patches\)"):
        make_config(tiny_data, {"data": packing}, patches=[{"side": 2, "share": 0.5}])


def test_a_damaged_checkpoint_is_passed_over(tiny_data, whole, tmp_path, capsys):
    out = tmp_path / "run"
    train_lm(make_config(tiny_data), out)
    damaged = out / "steps" / "step-00000008" / "weights.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert train_lm(make_config(tiny_data), out, resume=True)
    assert "step-00000008 is skipped: weights.safetensors is damaged" in capsys.readouterr().err
    assert_same_run(whole, out)


def test_what_kills_leave_is_gone_after_the_next_start(tiny_data, whole, tmp_path, capsys):
    """Half written and half removed checkpoints, temporary files and a half exported model; files of others stay."""
    out = tmp_path / "run"
    train_lm(make_config(tiny_data), out)
    shutil.copytree(out / "steps" / "step-00000008", out / "steps" / "step-00000003")
    (out / "steps" / "step-00000003" / "COMMITTED").unlink()
    (out / "steps" / ".step-00000009.tmp").mkdir()
    (out / ".model.tmp").mkdir()
    for name in (".config.json.ab_12xyz.part", "text/.text.model.ab_12xyz.part", "steps/.tmpAbC123"):
        (out / name).write_bytes(b"half")
    (out / "steps" / "mine").mkdir()
    (out / "notes.txt").write_text("mine")
    assert train_lm(make_config(tiny_data), out, resume=True)
    assert "step-00000003 is incomplete; it is removed" in capsys.readouterr().err
    expected = {path.name for path in (whole / "steps").iterdir()} | {"mine"}
    assert {path.name for path in (out / "steps").iterdir()} == expected
    assert (out / "notes.txt").exists() and (out / "model").is_dir()
    hidden = [path for path in out.rglob(".*")]
    assert hidden == []
    assert_same_run(whole, out)


def test_a_second_run_in_a_folder_is_refused_by_name(tiny_data, whole, tmp_path):
    with lock_folder(tmp_path / "run", "tessera train tiny.yaml"):
        for resume in (False, True):
            with pytest.raises(ValueError, match="another process is writing there .*: tessera train tiny.yaml"):
                train_lm(make_config(tiny_data), tmp_path / "run", resume=resume)


def test_a_full_disk_keeps_the_checkpoint_before(tiny_data, tmp_path, monkeypatch):
    """safetensors' error has no errno of its own."""
    out = tmp_path / "run"
    save, saved = safetensors.torch.save_file, []

    def full(tensors, file, *more, **options):
        if len(saved) >= 3 and "ema" in str(file):
            raise safetensors.SafetensorError("Error while serializing: I/O error: No space left (os error 28)")
        saved.append(file)
        return save(tensors, file, *more, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(
        DiskFull, match=r"no disk space for a checkpoint, it needs about \d[\d,]+ bytes and [\d,]+ bytes"
    ):
        train_lm(make_config(tiny_data), out)
    assert [path.name for path in (out / "steps").iterdir()] == ["step-00000003"]
    monkeypatch.setattr(safetensors.torch, "save_file", save)
    assert train_lm(make_config(tiny_data), out, resume=True)


def test_refusals(tiny_data, whole, tmp_path):
    with pytest.raises(FileExistsError, match="is not empty; resume that run with --resume, or choose another"):
        train_lm(make_config(tiny_data), whole)
    with pytest.raises(ConfigError, match=r"train.lr: this run was started with 0.01 .* the config now says 0.02"):
        train_lm(make_config(tiny_data, lr=0.02), whole, resume=True)
    with pytest.raises(ConfigError, match=r"train.steps: 7, but 8 are done .* tessera export .*run --step N"):
        train_lm(make_config(tiny_data, steps=7), whole, resume=True)
    with pytest.raises(ConfigError, match=r"data.shards: .*test is not what .*step-00000008 was trained on"):
        other = {"shards": str(tiny_data / "test"), "test": str(tiny_data / "test"), "pool_batches": 2}
        train_lm(make_config(tiny_data, {"data": other}), whole, resume=True)
    shutil.copytree(tiny_data / "train", tmp_path / "relabelled")
    index = read_sealed_json(tmp_path / "relabelled" / "index.json")
    index["labels"] = index["labels"][::-1]  # the same codes, told otherwise
    write_sealed_json(tmp_path / "relabelled" / "index.json", index)
    with pytest.raises(
        ConfigError, match=r"the labels or texts of .*relabelled, or the text tokenizer or encoder beside"
    ):
        data = {"shards": str(tmp_path / "relabelled"), "test": str(tiny_data / "test"), "pool_batches": 2}
        train_lm(make_config(tiny_data, {"data": data}), whole, resume=True)
    with pytest.raises(ValueError, match="codes of tokenizer 'tiny' .* but 'other'"):
        train_lm(make_config(tiny_data, {"tokenizer": str(tiny_data / "other")}), tmp_path / "a")
    with pytest.raises(ValueError, match=r"batch 4 is not a multiple of micro_batch 3"):
        make_config(tiny_data, micro_batch=3)
    with pytest.raises(ConfigError, match=r"train.weigth_decay: unknown key; did you mean 'weight_decay'"):
        make_config(tiny_data, weigth_decay=0.1)


def test_shards_and_tokenizer_may_move(tiny_data, whole, tmp_path):
    out = tmp_path / "run"
    train_lm(make_config(tiny_data), out)
    moved = shutil.copytree(tiny_data, tmp_path / "moved")
    assert train_lm(make_config(moved), out, resume=True)
    assert_same_run(whole, out)


def test_three_bad_steps_in_a_row_end_the_run(tiny_data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    step = LMTrainer.train_step
    seen = []

    def poisoned(self, stop):
        weight = next(self.engine.objective.parameters())
        seen.append(weight.detach().clone())
        handle = weight.register_hook(lambda gradient: gradient * torch.nan) if self.state.step in BAD else None
        try:
            return step(self, stop)
        finally:
            if handle is not None:
                handle.remove()

    BAD = {2, 4, 5, 6}
    monkeypatch.setattr(LMTrainer, "train_step", poisoned)
    with pytest.raises(TrainingFailed, match=r"not finite in 3 steps in a row, up to step 7; .* of step 4"):
        train_lm(make_config(tiny_data), out)
    assert torch.equal(seen[2], seen[3]) and torch.equal(seen[4], seen[6]) and not torch.equal(seen[3], seen[4])
    bad = [line for line in read_metrics(out) if line["split"] == "bad"]
    assert [line["step"] for line in bad] == [3, 5, 6, 7]
    assert len(bad[0]["items"]) == 4 and bad[0]["grad_norm"] is None


def test_samples_are_asked_for(tiny_data, tmp_path):
    asked = []
    train_lm(make_config(tiny_data, steps=3, sample_every=2, samples=3, ema=0.0), tmp_path / "run", sample=asked.append)
    assert [request.folder.name for request in asked] == ["step-00000002", "step-00000003"]
    request = asked[0]
    assert request.count == 3 and len(request.labels) == len(request.texts) == 3
    assert set(request.labels) <= set(request.model.labels) and request.folder.is_dir()
    assert not request.model.lm.training


def test_without_an_average_the_weights_themselves_are_exported(tiny_data, tmp_path):
    changes = {"export": {"dtype": "float32"}}
    train_lm(make_config(tiny_data, changes, steps=2, ema=0.0), tmp_path / "run")
    exported = load_file(tmp_path / "run" / "model" / "lm.safetensors")
    trained = load_file(tmp_path / "run" / "steps" / "step-00000002" / "weights.safetensors")
    assert all(torch.equal(exported[name], trained[name]) for name in trained)


def test_a_preset_arrangement_is_written_out(tiny_data, tmp_path):
    lm = {"width": 16, "layers": 1, "heads": 2, "arrangement": {"kind": "preset", "name": "dia"}}
    train_lm(make_config(tiny_data, {"lm": lm}, steps=2, eval_every=None, ema=0.0), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "config.json").read_text())["lm"]
    assert written["arrangement"] == {"kind": "delay", "delays": [0, 8], "flatten_first": 0}
    assert written["specials"]["start"] == 2 and written["variable_length"] is True
    assert load_model(tmp_path / "run" / "model").config.model_dump(mode="json") == written


DEPTH_SHARE = {"kind": "depth", "width": 8, "layers": 1, "heads": 2, "trained_share": 0.5}


@pytest.mark.parametrize("uncut", ["nothing", "packed rows", "depth head"])
def test_only_the_same_noise_is_called_the_same_run(tiny_data, tmp_path, capfd, uncut):
    """Where the processes cannot share the micro-batches, it goes on with smaller ones, not "up to rounding"."""
    config = make_config(tiny_data)
    changes = {}
    if uncut == "packed rows":
        changes = {"data": {"shards": str(tiny_data / "train"), "packing": {"kind": "best_fit", "steps": 32}}}
    elif uncut == "depth head":
        changes = {"lm": {**config.lm.model_dump(mode="json"), "head": DEPTH_SHARE}}
    config = make_config(tiny_data, changes, steps=2, save_every=1, eval_every=None)
    assert train_lm(config, tmp_path / "run")
    found = tmp_path / "run" / "steps" / "step-00000001"
    parts = open_parts(config, tmp_path / "run", ONE_PROCESS)
    capfd.readouterr()
    world = ProcessGroup(0, 4, torch.device("cpu"))
    started = config.model_copy(update={"engine": saved_engine(tmp_path / "run" / "steps")})
    started = started.model_copy(update={"lm": started.lm.explicit(parts.spec.num_codebooks)})
    RunState.load(found, started, parts, world, cut_like(found, config, world).micro)
    said = capfd.readouterr().err
    assert said.count("note: ") == 1
    assert ("the run is the same up to rounding" in said) == (uncut == "nothing")
    assert ("different random numbers" in said) == (uncut != "nothing")
