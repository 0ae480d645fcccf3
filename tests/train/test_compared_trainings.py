"""benchmarks/trainings.py: what a comparison trains is trained once, goes on where it was stopped, and is stored."""

import json
import math
import threading
from pathlib import Path

import pytest
from benchmark_files import FOLDER, load_files

from tessera.configs.folder_lock import lock_folder
from tessera.configs.schema import read_config
from tessera.lm.checkpoints.parameter_shapes import parameter_shapes
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.lm.config import TrainConfig

provenance, trainings = load_files("provenance", "trainings")


@pytest.fixture
def results(tmp_path):
    return trainings.Results(tmp_path / "results.json", tmp_path / "out", "a test")


def test_a_training_is_done_once_and_measured_from_its_last_part(results, tiny_config, tmp_path):
    parts = [tiny_config(steps=2), tiny_config(steps=3)]
    training = trainings.Training("one", {"kind": "plain", "seed": 0}, lambda folder: parts, len(parts))
    measured = []

    def measure(of, folder):
        measured.append((of.name, folder.relative_to(tmp_path)))
        return {"bits": 1.5}

    for _ in range(2):
        trainings.train_all([training], results, measure)
    assert measured == [("one", Path("out/one/run-1/model"))]
    assert (results.out / "one/run-0/model/config.json").is_file()
    row = results.rows()["one"]
    assert (row["kind"], row["bits"], row["torch"]) == ("plain", 1.5, provenance.here()["torch"])
    spent = [json.loads(file.read_text())["seconds"] for file in results.out.glob("one/*.seconds.json")]
    assert row["cpu_seconds"] == pytest.approx(sum(spent)) and min(spent) > 0


def test_dropped_rows_are_measured_again(results, tiny_config):
    both = [trainings.Training(name, {}, lambda folder: [tiny_config(steps=2)]) for name in ("one", "two")]
    measured = []
    trainings.train_all(both, results, lambda of, _: measured.append(of.name) or {})
    results.drop(name for name in ("two", "never"))
    assert list(results.rows()) == ["one"]
    trainings.train_all(both, results, lambda of, _: measured.append(of.name) or {})
    assert measured == ["one", "two", "two"]


def test_a_stopped_training_goes_on_and_its_time_is_added(results, tiny_config, monkeypatch):
    calls = []

    def stopped_first(config, out, resume):
        calls.append(resume)
        out.mkdir(parents=True, exist_ok=True)
        return len(calls) == 2

    monkeypatch.setattr(trainings, "train_lm", stopped_first)
    training = trainings.Training("one", {}, lambda folder: [tiny_config()])
    times = iter([10.0, 14.0, 20.0, 23.0])
    monkeypatch.setattr(trainings.time, "process_time", lambda: next(times))
    with pytest.raises(SystemExit, match="--resume"):
        trainings.train_all([training], results, lambda *_: {})
    assert results.rows() == {}
    trainings.train_all([training], results, lambda *_: {})
    assert calls == [False, True] and results.rows()["one"]["cpu_seconds"] == 7


def killed(config, out, resume):
    out.mkdir(parents=True, exist_ok=True)
    raise KeyboardInterrupt


def test_the_time_of_a_training_that_was_killed_is_unknown(results, tiny_config, monkeypatch):
    training = trainings.Training("one", {}, lambda folder: [tiny_config()])
    monkeypatch.setattr(trainings, "train_lm", killed)
    with pytest.raises(KeyboardInterrupt):
        trainings.train_all([training], results, lambda *_: {})
    monkeypatch.setattr(trainings, "train_lm", lambda config, out, resume: resume)
    trainings.train_all([training], results, lambda *_: {})
    row = results.rows()["one"]
    assert row["cpu_seconds"] is None
    assert trainings.cpu_minutes([row]) == "" and trainings.cpu_minutes([row, {"cpu_seconds": 120.0}]) == "2"


def test_a_training_that_fails_is_named_and_the_others_are_trained(results, tiny_config, monkeypatch, capsys):
    def train_lm(config, out, resume):
        if config.seed == 1:
            raise RuntimeError("the loss is no number")
        return True

    monkeypatch.setattr(trainings, "train_lm", train_lm)
    three = [
        trainings.Training(f"of-{seed}", {}, lambda folder, seed=seed: [tiny_config({"seed": seed})])
        for seed in range(3)
    ]
    with pytest.raises(SystemExit, match="failed: of-1"):
        trainings.train_all(three, results, lambda *_: {})
    assert set(results.rows()) == {"of-0", "of-2"} and "the loss is no number" in capsys.readouterr().err


def test_a_training_with_other_settings_is_not_taken_for_finished(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr(trainings, "train_lm", lambda config, out, resume: True)
    trainings.train(tiny_config(), tmp_path / "run-0")
    trainings.train(tiny_config(), tmp_path / "run-0")
    with pytest.raises(ValueError, match="other settings"):
        trainings.train(tiny_config(steps=7), tmp_path / "run-0")


def test_a_shorter_run_has_a_shorter_warm_up(tiny_config):
    assert trainings.scaled(2000) == [
        "train.steps=2000", "train.warmup_steps=100", "train.ema=0.995000", "train.eval_every=250",
    ]  # fmt: skip
    assert trainings.scaled(20)[1:] == ["train.warmup_steps=1", "train.ema=0.500000", "train.eval_every=2"]


def test_figures_of_another_machine_do_not_count(results):
    results.add_row("here", {"bits": 1})
    results.add(rows=results.stored()["rows"] | {"there": {"bits": 2, "machine": "another", "torch": "1.0"}}, more=3)
    assert set(results.rows()) == {"here"} and results.stored()["more"] == 3


def test_what_another_process_is_at_is_waited_for(results, tiny_config, monkeypatch):
    monkeypatch.setattr(trainings, "train", lambda *_: pytest.fail("trained twice"))
    monkeypatch.setattr(trainings.time, "sleep", lambda _: release.set())
    release, holding = threading.Event(), threading.Event()

    def other():
        with lock_folder(results.out / "one", "another"):
            holding.set()
            release.wait(20)
            results.add_row("one", {})

    thread = threading.Thread(target=other)
    thread.start()
    holding.wait(20)
    trainings.train_all([trainings.Training("one", {}, lambda folder: [tiny_config()])], results, lambda *_: {})
    thread.join()
    assert release.is_set()


def test_the_heads_that_are_compared_have_equal_parameters():
    """configs/heads, without the conditions, which are the same for all."""
    tokenizer, sizes, others = load_tokenizer(FOLDER.parent / "bundled/voice/tokenizer"), {}, set()
    for path in sorted((FOLDER.parent / "configs/heads").glob("*.yaml")):
        config = read_config(path, TrainConfig)
        run = config.model_copy(update={"name": ""}).model_dump(exclude={"lm"})
        others.add(str((run, config.lm.model_dump(exclude={"layers", "ffn", "arrangement", "head"}))))
        lm = config.lm.model_copy(update={"conditions": ()})
        shapes = parameter_shapes(lm, tokenizer.spec, tokenizer.vectors().shape[-1])
        sizes[path.stem] = sum(math.prod(shape) for shape in shapes.values())
    assert set(sizes) == {"lm-delay", "lm-parallel", "lm-depth", "lm-flat"} and len(others) == 1
    assert max(sizes.values()) <= 1.01 * min(sizes.values()), sizes
