"""The limits by which a model of one's own says long texts in pieces: counted over the training items."""

import math
from pathlib import Path

import pytest
import torch
from conftest import _write_shards
from test_lm_trainer import make_config

from tessera.configs.files import read_json, write_json
from tessera.generate.loading import load
from tessera.lm.generation_config import GenerationConfig
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.text.registry import make_text
from tessera.tokenize.tokenizer import make_tokenizer
from tessera.train.lm.dataset import CodesDataset
from tessera.train.lm.text_statistics import text_limits, with_limits
from tessera.train.lm.trainer import train_lm


@pytest.fixture
def spoken(tmp_path, tiny_sound):
    """A folder with tokenizer/ and train/ (shards) of sound."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(tiny_sound)
    tokenizer.save(tmp_path / "tokenizer")
    _write_shards(tmp_path / "train", tokenizer, 23, seed=1)
    return tmp_path


def retold(folder: Path, texts: list) -> Shards:
    index = read_json(folder / "index.json")
    write_json(folder / "index.json", {**index, "texts": texts})
    return Shards(folder)


@pytest.mark.parametrize("normalise", ["none", "words"])
def test_against_counting(spoken, normalise):
    config = ByteTextConfig(normalise=normalise)
    shards = retold(spoken / "train", [f"it's {'very ' * (i % 4)}good, {i}!" for i in range(22)] + [None])
    items = CodesDataset(shards, None, None, 7)
    found = text_limits(items, make_text(config, []))
    pairs = []
    for row in range(len(items)):
        item = shards.item(int(items.numbers[row]))
        if item.text is not None:
            pairs.append(
                (len(make_text(config, []).decode(make_text(config, []).encode(item.text))), item.codes.shape[1])
            )
    assert found.text_characters == max(size for size, _ in pairs)
    assert found.frames_per_character is not None
    least, most = found.frames_per_character
    assert math.isclose(least, min(frames / size for size, frames in pairs) / 1.5, abs_tol=1e-3)
    assert math.isclose(most, max(frames / size for size, frames in pairs) * 1.5, abs_tol=1e-3)
    changed = {
        name for name in GenerationConfig.model_fields if getattr(found, name) != getattr(GenerationConfig(), name)
    }
    assert changed == {"text_characters", "frames_per_character"}


def test_one_wrong_transcript_in_many_items_counts_for_nothing(spoken):
    shards = retold(spoken / "train", ["one two"] * 22 + ["one two " * 100])
    items = CodesDataset(shards, None, None)
    items.numbers, items.frames = items.numbers.repeat(20)[:-19], items.frames.repeat(20)[:-19]
    assert text_limits(items, make_text(ByteTextConfig(), [])).text_characters == 7


def test_what_the_config_says_wins_and_no_text_says_nothing(spoken):
    limits = GenerationConfig(text_characters=9, frames_per_character=(1.0, 2.0))
    own = GenerationConfig(text_characters=4, temperature=0.5)
    assert with_limits(own, limits) == own.model_copy(update={"frames_per_character": (1.0, 2.0)})
    items = CodesDataset(retold(spoken / "train", [None] * 23), None, None)
    assert text_limits(items, make_text(ByteTextConfig(), [])) == GenerationConfig()


@pytest.mark.parametrize("given", [{}, {"text_characters": 7}])
def test_a_trained_model_splits_by_itself(spoken, tmp_path, given):
    lm = {"width": 16, "layers": 1, "heads": 2, "variable_length": True,
          "conditions": [{"kind": "text", "text": {"kind": "bytes"}}]}  # fmt: skip
    changes = {"data": {"shards": str(spoken / "train")}, "lm": lm, "generation": {"max_frames": 40, **given}}
    assert train_lm(make_config(spoken, changes, steps=1, eval_every=None), tmp_path / "run")
    model = load(tmp_path / "run" / "model")
    longest = max(len(text) for text in Shards(spoken / "train").texts() if text)
    limit = model.defaults.text_characters
    assert limit is not None and limit == given.get("text_characters", longest)
    assert model.defaults.max_frames == 40 and model.defaults.frames_per_character is not None
    pieces = model._chunks(["one two three four five one two"], None, {"carry": "nothing"}, [])[0]
    assert len(pieces) > 1 and all(len(piece) <= limit for piece in pieces)


def test_pictures_have_no_such_limits(tiny_data, tmp_path):
    assert train_lm(make_config(tiny_data, steps=1, eval_every=None), tmp_path / "run")
    assert load(tmp_path / "run" / "model").defaults.text_characters is None
