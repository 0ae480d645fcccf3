"""Training of a model with an aligned text, from shards with alignments to generation."""

import json
from pathlib import Path

import pytest
import torch
from conftest import _write_shards
from test_lm_trainer import make_config

from tessera.configs.files import read_json, write_json
from tessera.generate.loading import load
from tessera.tokenize.alignment.alignment import Alignment, format_alignment
from tessera.tokenize.tokenizer import make_tokenizer
from tessera.train.lm.trainer import train_lm

UNITS = ("|", "a", "b", "|")
LM = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "variable_length": True,
    "conditions": [
        {"kind": "label", "join": "sum"},
        {"kind": "aligned", "layers": 1, "text": {"kind": "characters"}},
    ],
}


def frames_for(length):
    """A pause, two letters and a pause that last `length` frames, 3 or more."""
    return (1, length - 2, 1, 0)


@pytest.fixture
def spoken(tmp_path, tiny_sound):
    """A folder with tokenizer/, and train/ and test/ (shards) of audio with alignments."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(tiny_sound)
    tokenizer.save(tmp_path / "tokenizer")
    for name, count in (("train", 23), ("test", 7)):
        _write_shards(tmp_path / name, tokenizer, count, seed=1)
        change(tmp_path / name, lambda i, length: Alignment(UNITS, frames_for(length)))
    return tmp_path


def change(folder: Path, make, texts="ab ba ab"):
    index = read_json(folder / "index.json")
    made = [make(i, length) for i, length in enumerate(index["lengths"])]
    index["alignments"] = [None if one is None else format_alignment(one) for one in made]
    write_json(folder / "index.json", index | {"texts": [texts] * len(made)})


def run(spoken, out, data=None, lm=LM, **settings):
    folders = {"shards": str(spoken / "train"), "test": str(spoken / "test")}
    changes = {"data": folders | (data or {}), "lm": lm, "generation": {"max_frames": 30}}
    return train_lm(make_config(spoken, changes, **({"steps": 6, "eval_every": 3} | settings)), out)


def test_a_trained_model_speaks_its_text(spoken, tmp_path):
    assert run(spoken, tmp_path / "run")
    lines = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"test"' in line]
    assert '"loss_advance"' in lines[-1] and '"loss_per_codebook"' in lines[-1]
    assert "| advance | step |" in (tmp_path / "run" / "model" / "README.md").read_text()
    model = load(tmp_path / "run" / "model")
    found = model.generate("ab ba", label="a", seed=3)
    spoken_text = found.alignment
    assert spoken_text.units == ("|", "a", "b", "|", "b", "a", "|") and found.ended == (True,)
    assert sum(spoken_text.frames) == int(found.lengths[0])
    assert [one.word for one in spoken_text.words] == ["ab", "ba"]
    assert 0 < spoken_text.words[0].start < spoken_text.words[0].end <= spoken_text.words[1].start
    assert torch.equal(torch.cat(list(model.stream("ab ba", label="a", seed=3)), dim=1), found.media[0])
    with pytest.raises(ValueError, match="needs a text"):
        model.generate(label="a")
    with pytest.raises(ValueError, match="leave num_frames out"):
        model.generate("ab", label="a", num_frames=3)


def test_a_model_of_phonemes_reads_english(spoken, tmp_path):
    """Its units are those of the alignments it was trained on, its model directory has the data of the front end."""
    units = ("|", "ə", "ˈn", "|")  # a stressed consonant, as some alignments have it
    for part in ("train", "test"):
        change(spoken / part, lambda i, length: Alignment(units, frames_for(length)), texts="An a. " * 9)
    condition = {"kind": "aligned", "layers": 1, "text": {"kind": "phonemes", "language": "en"}}
    assert run(spoken, tmp_path / "run", lm=LM | {"conditions": [condition]}, steps=2)
    folder = tmp_path / "run" / "model"
    assert {"units.json", "lexicon.tsv", "english.zip"} <= {path.name for path in folder.iterdir()}
    (tmp_path / "words.tsv").write_text("Lee\tkˈæt\n", encoding="utf-8")
    model = load(folder, lexicon=tmp_path / "words.tsv")
    found = model.generate("Dr. Lee paid $5, 日.", seed=3)
    assert "".join(found.alignment.units) == "|dˈɑktəɹ|kˈæt|pˈAd|fˈIv|dˈɑləɹz.|"
    assert [one.word for one in found.alignment.words] == ["Dr.", "Lee", "paid", "$5,"]
    assert any("cannot read '日', which is left out" in warning for warning in found.warnings)


def test_packed_items_are_trained_on(spoken, tmp_path):
    """That the loss is that of padded items is a law of the model (tests/lm/test_aligned.py)."""
    assert run(spoken, tmp_path / "run", {"packing": {"kind": "best_fit", "steps": 40}}, steps=2)
    assert all(line["loss_advance"] > 0 for line in read_metrics(tmp_path / "run"))


def read_metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


MISSING = {
    "no alignment": (lambda i, length: None, "no alignment.*tessera align"),
    "unknown unit": (lambda i, length: Alignment(("|", "q", "|"), (1, length - 1, 0)), "does not have the unit 'q'"),
}


@pytest.mark.parametrize("make, message", MISSING.values(), ids=MISSING.keys())
def test_items_that_cannot_be_aligned_are_named(spoken, tmp_path, make, message):
    whole = lambda i, length: Alignment(UNITS, frames_for(length))  # noqa: E731
    change(spoken / "train", lambda i, length: make(i, length) if i == 4 else whole(i, length))
    with pytest.raises(ValueError, match=f"'item4': .*{message}|{message}.*'item4'"):
        run(spoken, tmp_path / "run")
    assert run(spoken, tmp_path / "run", {"missing": "skip"}, steps=1)


def test_changed_durations_are_other_data(spoken, tmp_path):
    assert run(spoken, tmp_path / "run", steps=2)
    change(spoken / "train", lambda i, length: Alignment(UNITS, (1, 1, length - 2, 0)))
    with pytest.raises(ValueError, match="labels or texts"):
        train_lm(
            make_config(
                spoken,
                {"data": {"shards": str(spoken / "train")}, "lm": LM, "generation": {"max_frames": 30}},
                steps=4, eval_every=None,
            ),
            tmp_path / "run",
            resume=True,
        )  # fmt: skip
