"""What can be known before the first step is said before it: one line, exit code 2, and nothing is left behind."""

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from tessera.cli.app import run as tessera
from tessera.configs.schema import ConfigError
from tessera.generate.loading import load
from tessera.tokenize.data.shard_reader import Shards
from tessera.train.common import disk_space
from tessera.train.distributed.process_group import ONE_PROCESS
from tessera.train.engines import auto
from tessera.train.lm.trainer import LMTrainer, train_lm

LM = {"width": 16, "layers": 1, "heads": 2, "variable_length": True}
MASKED = {"kind": "masked", "width": 16, "layers": 1, "heads": 2}


def lm(*conditions: dict, **changes) -> dict:
    return {"lm": {**LM, **changes, "conditions": list(conditions)}}


def retold(folder: Path, out: Path, **columns) -> str:
    """Shards with other labels or texts."""
    shutil.copytree(folder, out)
    index = json.loads((out / "index.json").read_text())
    for name, change in columns.items():
        index[name] = change(index[name])
    (out / "index.json").write_text(json.dumps(index))
    return str(out)


@pytest.fixture
def refused(tmp_path, capsys):
    """Train from the command line; returns the one line of the refusal. No step is made and nothing is left."""

    def train(config, *more: str) -> str:
        path, out = tmp_path / "c.yaml", tmp_path / "run"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LMTrainer, "train_step", lambda *a: pytest.fail("a step was made"))
            assert tessera(["train", str(path), "--out", str(out), *more]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
        assert not out.exists() or not list(out.rglob("*.*"))
        return line

    return train


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "model, generation, said",
    [
        (lm(), {"guidance": 1.5}, "generation: guidance is 1.5, but the model has no conditions; use guidance 1"),
        (lm({"kind": "label", "dropout": 0.0}), {"guidance": 2.0}, "trained without dropping its label"),
        (lm({"kind": "label"}), {"guidance": [2.0, 1.0, 1.0]}, "guidance has 3 scales but the model has 2 codebooks"),
        (lm({"kind": "label"}), {"temperature": [1.0, 0.9, 0.8]}, "temperature has 3 values but the model has 2 codeb"),
        (lm({"kind": "label"}), {"top_k": [1, 2, 3]}, "top_k has 3 values"),
        (lm({"kind": "label"}), {"repetition_penalty": [1.0, 1.2, 1.0]}, "repetition_penalty has 3 values"),
        (lm({"kind": "label"}), {"draft": 3}, "generation: draft"),
        (lm({"kind": "label"}), {"max_frames": 3}, "max_frames is 3, but an image of 'tiny' has"),
        (lm({"kind": "label"}), {"default_label": "hearth"}, "generation.default_label: no label 'hearth'; use one of"),
        (lm(), {"default_label": "a"}, "generation.default_label: no label 'a'; use null: the model has no labels"),
        (lm({"kind": "label"}), {"max_silence": 1.0}, "makes images, which have no silence; use max_silence 0"),
        ({"lm": {**MASKED, "conditions": [{"kind": "label"}]}}, {"draft": 3}, "a masked model does not decode step"),
        ({"lm": {**MASKED, "conditions": []}}, {"guidance": 2.0}, "guidance is 2.0, but the model has no conditions"),
    ],
)
def test_generation_settings_that_do_not_fit_the_model(tiny_config, refused, model, generation, said):
    assert said in refused(tiny_config({**model, "generation": generation}))


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_model_without_conditions_generates_by_its_defaults(tiny_config, tmp_path, kind):
    path, out = tmp_path / "c.yaml", tmp_path / "run"
    model = {**(LM if kind == "causal" else MASKED), "conditions": []}
    if kind == "causal":
        model["variable_length"] = False
    path.write_text(
        yaml.safe_dump(tiny_config({"lm": model}, steps=1, sample_every=1, samples=2).model_dump(mode="json"))
    )
    assert tessera(["train", str(path), "--out", str(out)]) == 0
    assert len(load(out / "model").generate(n=2).media) == 2
    assert tessera(["generate", str(out / "model"), "-o", str(tmp_path / "made"), "-n", "2"]) == 0


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "columns, condition, said",
    [
        (
            {"texts": lambda texts: [None, "", *texts[2:]]},
            "text",
            "2 of 23 items lack .*'item0': no text; 'item1': no text",
        ),
        (
            {"texts": lambda texts: [*texts[:-1], "?!"]},
            "text",
            "1 of 23 items .*'item22': the text '\\?!' is empty once",
        ),
        (
            {"texts": lambda texts: [texts[0] * 999, *texts[1:]]},
            "text",
            "1 of 23 .*'item0': the text has .* characters, the limit",
        ),
        ({"labels": lambda labels: [-1] * 5 + labels[5:]}, "label", "5 of 23 .*'item2': no label; and 2 more.*=skip"),
    ],
)
@pytest.mark.parametrize("split", ["shards", "test"])
def test_items_that_lack_something_are_named(
    tiny_config, tiny_data, tmp_path, refused, columns, condition, said, split
):
    folder = tiny_data / "train"
    data = {"shards": str(folder), "test": str(tiny_data / "test")}
    data[split] = retold(folder, tmp_path / "retold", **columns)
    text = {"text": {"kind": "bytes", "normalise": "words"}} if condition == "text" else {}
    model = lm({"kind": condition, **text})
    line = refused(tiny_config({"data": data, **model}))
    assert re.search(f"retold: {said}", line)
    data["missing"] = "skip"
    out = tmp_path / "skipping"
    assert train_lm(tiny_config({"data": data, **model}, steps=12), out)
    if split == "shards":
        state = json.loads((out / "steps" / "step-00000012" / "run.json").read_text())
        assert state["config"]["data"]["missing"] == "skip"


def test_all_items_lacking_something_is_refused_also_when_skipping(tiny_config, tiny_data, tmp_path):
    folder = retold(tiny_data / "train", tmp_path / "retold", texts=lambda texts: [None] * len(texts))
    data = {"shards": folder, "missing": "skip"}
    with pytest.raises(ValueError, match=r"23 of 23 items lack .*build the shards again$"):
        train_lm(tiny_config({"data": data, **lm({"kind": "text", "text": {"kind": "bytes"}})}), tmp_path / "run")


def test_no_text_tokenizer_is_left_by_a_refused_start(tiny_config, refused):
    model = lm({"kind": "text", "dropout": 0.1, "text": {"kind": "sentencepiece", "vocab_size": 24}})
    assert "temperature has 3 values" in refused(tiny_config({**model, "generation": {"temperature": [1.0, 1.0, 1.0]}}))


def test_room_for_a_checkpoint(tiny_config, tmp_path, refused, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage(10**12, 0, 10_000))
    line = refused(tiny_config())
    assert "no disk space for a checkpoint and the model, which take about" in line and "10 kB are free" in line
    trainer = LMTrainer(tiny_config(), tmp_path / "b", ONE_PROCESS)
    needed = 18 * trainer.num_parameters  # weights, moments, average; and half of it exported
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage(10**12, 0, needed))
    trainer.check()
    assert "warning:" in capsys.readouterr().err
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage(10**12, 0, needed - 1))
    with pytest.raises(ConfigError, match="no disk space for a checkpoint"):
        trainer.check()


def test_the_size_of_a_checkpoint_is_as_foreseen(tiny_config, tmp_path):
    trainer = LMTrainer(tiny_config(steps=1), tmp_path / "run", ONE_PROCESS)
    assert trainer.run()
    found = sum(path.stat().st_size for path in (tmp_path / "run" / "steps").rglob("*.safetensors"))
    foreseen = 16 * trainer.num_parameters
    assert foreseen <= found <= foreseen + 60_000  # headers and step counts


def test_evaluation_is_tried_on_the_longest_items(tiny_config, tiny_data, tmp_path, refused):
    folder = shutil.copytree(tiny_data / "test", tmp_path / "damaged")
    target = folder / "00000.safetensors"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    line = refused(tiny_config({"data": {"shards": str(tiny_data / "train"), "test": str(folder)}}))
    assert "00000.safetensors" in line and "damaged" in line
    asked = []
    trainer = LMTrainer(tiny_config(), tmp_path / "b", ONE_PROCESS)
    batch = trainer.parts.test.batch
    trainer.parts.test.batch = lambda rows: asked.append(rows) or batch(rows)
    trainer.check()
    lengths = Shards(tiny_data / "test").lengths
    assert sorted(lengths[asked[0]]) == sorted(lengths)[-4:]


def test_deepspeed_that_is_not_installed(tiny_config, refused, monkeypatch):
    monkeypatch.setattr(auto, "has_deepspeed", lambda: False)
    line = refused(tiny_config({"engine": {"kind": "deepspeed"}}))
    assert (
        "engine kind 'deepspeed' needs the package deepspeed; pip install deepspeed, or set engine.kind=torch" in line
    )


def test_prompts_longer_than_the_condition_reads(tiny_config):
    model = lm({"kind": "codes", "max_frames": 4})
    with pytest.raises(ConfigError, match="data.prompt.min_frames is 5, but the condition codes .* at most 4"):
        tiny_config({**model, "data": {"shards": "x", "prompt": {"kind": "crop", "min_frames": 5}}})


def test_settings_that_contradict_each_other_without_harm_are_noted(tiny_config, tmp_path, tiny_data, capsys):
    data = {"shards": str(tiny_data / "train")}
    assert train_lm(tiny_config({"data": data}, steps=2, warmup_steps=2, eval_every=1, save_every=5), tmp_path / "run")
    said = capsys.readouterr().err
    assert "note: train.eval_every is set, but data.test is not" in said
    assert "note: train.warmup_steps 2 is not below train.steps 2" in said
    assert "note: train.save_every 5 is above train.steps 2" in said


def test_an_export_that_fails_says_that_nothing_is_lost(tiny_config, tmp_path, monkeypatch):
    def overflows(*a):
        raise ValueError("tensor 'x' is not finite in float16")

    monkeypatch.setattr("tessera.train.lm.trainer.export_lm", overflows)
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="not finite in float16; .* tessera export .* --set export.dtype"):
        train_lm(tiny_config(steps=2), out)
    monkeypatch.undo()
    assert tessera(["export", str(out), "--set", "export.dtype=float32"]) == 0 and load(out / "model")
