"""Prompts of training items: where they come from, that they are always the same, and runs that use them."""

import json

import numpy as np
import pytest
import torch
from test_lm_trainer import make_config

from tessera.cli.app import run
from tessera.configs.files import read_safetensors
from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.data.shard_reader import Shards
from tessera.train.common.metrics import read_metrics
from tessera.train.distributed.process_group import ProcessGroup
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.dataset import CodesDataset
from tessera.train.lm.reference_prompts import CropPromptConfig, Prompts, PromptSource, SameLabelPromptConfig
from tessera.train.lm.trainer import LMTrainer, train_lm

LENGTHS = np.array([9, 4, 6, 2, 7, 5, 8])
LABELS = np.array([0, 1, 0, 2, 1, 0, -1])


def make(config, max_frames=5, seed=3, labels=LABELS):
    return Prompts(PromptSource(config, max_frames, seed), LENGTHS, labels, "here")


def test_another_item_of_the_same_label():
    prompts = make(SameLabelPromptConfig(min_frames=3))
    seen = set()
    for draw in range(200):
        for item, label in enumerate(LABELS.tolist()):
            found = prompts.choose(item, draw)
            if label in (2, -1):
                assert found is None, "no other item has its label"
                continue
            assert found.item != item and LABELS[found.item] == label
            frames, length = found.stop - found.start, LENGTHS[found.item]
            assert min(3, length) <= frames <= 5 and 0 <= found.start and found.stop <= length
            seen.add((item, found.item, frames))
    others = {(item, other) for item, other, _ in seen}
    assert others == {
        (a, b) for a in range(7) for b in range(7) if a != b and LABELS[a] == LABELS[b] < 2 and LABELS[a] >= 0
    }
    assert {frames for _, other, frames in seen if other == 0} == {3, 4, 5}


def test_a_stretch_of_the_item_itself():
    prompts = make(CropPromptConfig(min_frames=2, max_share=0.5))
    for item, length in enumerate(LENGTHS.tolist()):
        found = [prompts.choose(item, draw) for draw in range(100)]
        longest = max(1, min(5, length // 2))
        assert {one.item for one in found} == {item}
        assert {one.stop - one.start for one in found} == set(range(min(2, longest), longest + 1))
        assert min(one.start for one in found) == 0 and max(one.stop for one in found) == length


def test_a_pure_function_of_seed_draw_and_item():
    one, again, other = make(CropPromptConfig()), make(CropPromptConfig()), make(CropPromptConfig(), seed=4)
    draws = [(item, draw) for draw in range(20) for item in range(7)]
    found = [one.choose(*pair) for pair in draws]
    assert found[::-1] == [again.choose(*pair) for pair in draws[::-1]]
    assert found != [other.choose(*pair) for pair in draws]
    assert len({found[20 * 0 + 0], *(one.choose(0, draw) for draw in range(20))}) > 5


def test_labels_are_needed():
    with pytest.raises(ConfigError, match="same_label: no two items of here have the same label; add labels"):
        make(SameLabelPromptConfig(), labels=np.full(7, -1))
    make(CropPromptConfig(), labels=np.full(7, -1))


def test_a_batch_holds_them(tiny_data):
    shards = Shards(tiny_data / "train")
    items = CodesDataset(shards, None, None, 7, None, PromptSource(SameLabelPromptConfig(), 4, 1))
    rows = [0, 3, 5]
    batch = items.batch(rows, draw=9)
    for b, row in enumerate(rows):
        prompt, length = items.prompt(row, 9), int(batch.conditions.codes_lengths[b])
        assert torch.equal(batch.conditions.codes[b, :, :length], prompt)
        found = items.prompts.choose(row, 9)
        assert shards.labels[items.numbers[found.item]] == shards.labels[items.numbers[row]]
        whole = shards.item(int(items.numbers[found.item])).codes
        assert torch.equal(whole[:, found.start : found.stop], prompt)
    alone = items.batch([5], draw=9).conditions
    assert torch.equal(alone.codes[0], batch.conditions.codes[2, :, : alone.codes.shape[2]])
    drawn = [items.batch(rows, draw=draw).conditions for draw in range(6)]
    assert len({str(one.codes.tolist()) for one in drawn}) > 3


def test_samples_have_voices_and_prompts_change_the_model(tiny_data, tmp_path):
    asked = []
    conditions = [{"kind": "codes", "max_frames": 4, "dropout": 0.2}]

    def train(out, prompt):
        data = {"shards": str(tiny_data / "train"), "test": str(tiny_data / "test"), "prompt": {"kind": prompt}}
        lm = {"width": 16, "layers": 1, "heads": 2, "variable_length": True, "conditions": conditions}
        config = make_config(tiny_data, {"data": data, "lm": lm}, steps=4, sample_every=4, samples=3)
        assert train_lm(config, out, sample=asked.append)
        return read_safetensors(out / "model" / "lm.safetensors")[0]

    same_label, crop = train(tmp_path / "same", "same_label"), train(tmp_path / "crop", "crop")
    assert [len(request.voices) for request in asked] == [3, 3]
    assert all(voice.shape[0] == 2 for voice in asked[0].voices)
    assert not all(torch.equal(same_label[name], crop[name]) for name in crop)


@pytest.mark.sample(1)
@pytest.mark.parametrize("prompt", ["same_label", "crop"])
def test_eval_gives_items_the_prompts_of_training(tiny_data, tmp_path, capsys, prompt):
    """`tessera eval` of the trained model finds the run's own test loss."""
    data = {"shards": str(tiny_data / "train"), "test": str(tiny_data / "test"), "prompt": {"kind": prompt}}
    lm = {"width": 16, "layers": 1, "heads": 2, "variable_length": True,
          "conditions": [{"kind": "codes", "max_frames": 4}]}  # fmt: skip
    config = make_config(tiny_data, {"data": data, "lm": lm, "export": {"dtype": "float32"}}, steps=2, eval_every=None)
    assert train_lm(config, tmp_path / "run")
    trained = read_metrics(tmp_path / "run")[-1]["loss_per_codebook"]
    asked = ["eval", str(tmp_path / "run" / "model"), "--data", str(tiny_data / "test"), "--no-speed", "--json"]

    def losses(*more):
        assert run([*asked, *more]) == 0
        return json.loads(capsys.readouterr().out)["loss"]["per_codebook"]

    found = losses("--prompt", prompt, "--seed", "3")
    assert found == pytest.approx(trained, abs=1e-5) and losses("--prompt", prompt, "--seed", "3") == found
    assert losses("--prompt", f"{{kind: {prompt}}}", "--seed", "4") != found
    if prompt == "same_label":
        assert losses("--seed", "3") == found, "where there are labels it is the rule by itself"
    assert run([*asked, "--prompt", "another"]) == 2
    assert "prompt: kind 'another' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize("join", ["prefix", "cross"])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(tiny_data, tmp_path, join):
    """Through the whole of a training step, with prompts of different lengths."""
    found = []
    for packing in ({"kind": "padded"}, {"kind": "best_fit", "steps": 60}):
        data = {"shards": str(tiny_data / "train"), "prompt": {"kind": "same_label"}, "packing": packing}
        conditions = [{"kind": "codes", "max_frames": 6, "join": join}]
        lm = {"width": 16, "layers": 1, "heads": 2, "variable_length": True, "conditions": conditions}
        config = make_config(tiny_data, {"data": data, "lm": lm}, eval_every=None)
        trainer = LMTrainer(config, tmp_path / packing["kind"], ProcessGroup(0, 1, torch.device("cpu")))
        model, batch = trainer.engine.model.eval(), trainer.parts.items.batch(range(7), draw=2)
        assert len(set(batch.conditions.codes_lengths.tolist())) > 2 and model.packed == (packing["kind"] != "padded")
        loss, sums, _ = model(batch.codes, batch.lengths, batch.conditions, trainer.stepper.count_terms(batch.lengths))
        trainer.engine.backward(loss)
        found.append([loss.detach(), sums, *(weight.grad for weight in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


BASE = {
    "name": "x",
    "data": {"shards": "s"},
    "tokenizer": "t",
    "lm": {"conditions": [{"kind": "codes", "max_frames": 4}]},
    "train": {"steps": 1, "batch": 1, "lr": 0.1},
}


def test_the_config_says_where_they_come_from():
    with pytest.raises(ConfigError, match="data.prompt does not define where an item's prompt comes from"):
        check_config(BASE, TrainConfig)
    prompted = {**BASE, "data": {"shards": "s", "prompt": {"kind": "crop"}}}
    assert check_config(prompted, TrainConfig).data.prompt == CropPromptConfig()
    with pytest.raises(ConfigError, match="data.prompt is for an lm with the condition codes"):
        check_config({**prompted, "lm": {}}, TrainConfig)
    with pytest.raises(ConfigError, match="shards hold no vectors for the condition embedding"):
        check_config({**BASE, "lm": {"conditions": [{"kind": "embedding", "width": 4}]}}, TrainConfig)
