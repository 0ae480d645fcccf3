"""A run of a next-scale model from the command line: losses per scale, evaluation, samples."""

import json
from pathlib import Path

import pytest
from scale_data import write_data
from test_lm_trainer import read_metrics

from tessera.cli.app import run
from tessera.configs.schema import ConfigError, check_config
from tessera.generate.loading import load
from tessera.lm.models.next_scale import NextScaleLM
from tessera.train.lm.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data, and run/, made by commands."""
    folder = tmp_path_factory.mktemp("scales")
    write_data(folder)
    assert run(train_command(folder, folder / "run")) == 0
    return folder


def train_command(folder, out, *more):
    sets = [
        f"data={{shards: {folder / 'shards'}, test: {folder / 'shards'}}}",
        *(
            f"tokenizer={folder / 'tokenizer'}",
            "device=cpu",
            "export.dtype=float32",
            "train.ema=0",
            "train.eval_every=2",
        ),
        *("lm.width=16", "lm.layers=1", "lm.heads=2", "train.steps=4", "train.batch=4", "train.save_every=2"),
        *("train.warmup_steps=0", "train.log_every=1", *more),
    ]
    config = str(ROOT / "configs" / "digits-var" / "lm.yaml")
    return ["train", config, *[part for one in sets for part in ("--set", one)], "--out", str(out)]


def test_losses_are_reported_per_scale(folder):
    lines = read_metrics(folder / "run")
    assert {line["split"] for line in lines} == {"train", "test"}
    for line in lines:
        first, second = line["loss_per_scale"]
        assert line["loss"] == pytest.approx((first + 4 * second) / 5, rel=1e-6), "every cell alike"
    card = (folder / "run" / "model" / "README.md").read_text()
    assert "| split | mean | each scale | step |" in card


def test_eval_and_samples(folder, tmp_path, capsys):
    model = str(folder / "run" / "model")
    assert run(["eval", model, "--data", str(folder / "shards"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lines = read_metrics(folder / "run")
    last = [line for line in lines if line["split"] == "test"][-1]
    assert found["loss"]["per_scale"] == pytest.approx(last["loss_per_scale"], rel=1e-5)
    assert found["loss"]["mean"] == pytest.approx(last["loss"], rel=1e-5) and len(found["speed"]) == 2
    assert run(["eval", model, "--data", str(folder / "shards"), "--no-speed"]) == 0
    assert "scale" in capsys.readouterr().out
    assert run(["generate", model, "--label", "3", "-n", "2", "--seed", "5", "-o", str(tmp_path / "threes")]) == 0
    assert sorted(path.name for path in (tmp_path / "threes").iterdir()) == ["0000.png", "0001.png"]
    loaded = load(model)
    assert isinstance(loaded.lm, NextScaleLM) and loaded.labels == [str(digit) for digit in range(10)]


def test_refusals(folder):
    lm = {"kind": "next_scale", "width": 16}
    base = {"name": "x", "data": {"shards": "a"}, "tokenizer": "t", "lm": lm}
    train = {"steps": 1, "batch": 1, "lr": 0.1}
    assert check_config({**base, "train": train}, TrainConfig).lm.kind == "next_scale"
    with pytest.raises(ConfigError, match="predicts step by step, not of kind 'next_scale'"):
        check_config({**base, "train": {**train, "patches": [{"side": 2, "share": 0.5}]}}, TrainConfig)
    with pytest.raises(ConfigError, match="clusters: a next-scale model predicts the codes themselves"):
        check_config({**base, "train": train, "clusters": "c"}, TrainConfig)
