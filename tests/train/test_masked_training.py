"""Runs of masked models, of coarse labels and of their refiner: finished, and refused where they do
not fit each other."""

import json

import pytest
import torch
from refiner_configs import LABEL, SHAPE, coarse_config, refiner_config
from test_lm_trainer import make_config, read_metrics

from tessera.cli.app import run
from tessera.configs.schema import ConfigError
from tessera.generate.loading import load
from tessera.lm.checkpoints.model_directory import load_model
from tessera.lm.clustering.clustering import ClusteredTokenizer, cluster_codes
from tessera.lm.models.coarse_to_fine import CoarseToFine
from tessera.lm.models.masked import MaskedLM
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.lm.dataset import CodesDataset
from tessera.train.lm.trainer import train_lm


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    """The tiny data, and clusters/ of its codes."""
    folder = tmp_path_factory.mktemp("clusters")
    cluster_codes(load_tokenizer(tiny_data / "tokenizer"), 2).save(folder / "clusters")
    cluster_codes(load_tokenizer(tiny_data / "tokenizer"), 3).save(folder / "others")
    return tiny_data, folder


@pytest.fixture(scope="module")
def coarse(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("coarse") / "run"
    assert train_lm(coarse_config(data), out)
    return out


@pytest.fixture(scope="module")
def refiner(data, coarse, tmp_path_factory):
    out = tmp_path_factory.mktemp("refiner") / "run"
    assert train_lm(refiner_config(data, coarse), out)
    return out


def test_shards_are_mapped_on_the_fly(data):
    clustering = cluster_codes(load_tokenizer(data[0] / "tokenizer"), 2)
    shards = Shards(data[0] / "train")
    fine, labels = CodesDataset(shards, None, None), CodesDataset(shards, None, None, clustering=clustering)
    one, two = fine.batch([0, 5, 7]), labels.batch([0, 5, 7])
    assert torch.equal(two.codes, clustering.coarse(one.codes)) and int(two.codes.max()) == 1
    beyond = torch.arange(two.codes.shape[2]) >= one.lengths[:, None, None]
    assert not two.codes[beyond.expand_as(two.codes)].any()


def test_the_labels_are_learned(data, coarse):
    loaded = load_model(coarse / "model")
    assert isinstance(loaded.tokenizer, ClusteredTokenizer) and loaded.spec.cardinalities == (2, 2)
    assert read_metrics(coarse)[0]["loss"] < 1.2, "about log 2, and the end"
    assert loaded.labels == ["a", "b", "c"]


def test_the_refiner_is_exported_with_the_model_of_the_labels(refiner):
    model = load(refiner / "model")
    assert isinstance(model.lm, CoarseToFine)
    assert model.labels == ["a", "b", "c"]
    losses = json.loads((refiner / "FINISHED").read_text())["losses"]
    assert 0 < losses["test"]["loss"] < 2


def test_a_refiner_alone_may_be_joined_later(data, coarse, tmp_path):
    out = tmp_path / "run"
    train_lm(refiner_config(data, None, steps=2, eval_every=None), out)
    assert isinstance(load_model(out / "model").lm, MaskedLM)
    assert train_lm(refiner_config(data, coarse, steps=2, eval_every=None), out, resume=True)
    assert isinstance(load_model(out / "model").lm, CoarseToFine)


def test_a_refiner_without_conditions_takes_those_of_the_labels(data, coarse, tmp_path):
    out, asked = tmp_path / "run", []
    config = refiner_config(data, coarse, conditions=(), steps=2, eval_every=None, sample_every=2, samples=3)
    train_lm(config, out, sample=asked.append)
    assert load(out / "model").labels == ["a", "b", "c"]
    assert asked[0].labels == ["a", "b", "c"] and isinstance(asked[0].model.lm, CoarseToFine)


def test_a_masked_model_makes_samples_while_it_trains(data, tmp_path):
    lm = {**SHAPE, "kind": "masked", "masking": {"unit": "frame"}, "conditions": [LABEL]}
    config = make_config(data[0], {"lm": lm}, steps=3, eval_every=None)
    assert train_lm(config, tmp_path / "run")
    assert isinstance(load_model(tmp_path / "run" / "model").lm, MaskedLM)


def test_refusals(data, coarse, refiner, tmp_path):
    with pytest.raises(ConfigError, match=r"clusters: .*others are not those .*step-00000008 was trained with"):
        other = refiner_config(data, None).model_copy(update={"clusters": str(data[1] / "others")})
        train_lm(other, refiner, resume=True)
    with pytest.raises(FileNotFoundError, match="no clusters here"):
        train_lm(refiner_config(data, None).model_copy(update={"clusters": str(tmp_path)}), tmp_path / "a")
    with pytest.raises(ConfigError, match="not a model of coarse labels; train one with `clusters`"):
        train_lm(refiner_config(data, refiner), tmp_path / "b")
    with pytest.raises(
        ValueError, match="export.coarse_model .*: codes of tokenizer 'tiny-coarse' .* but 'tiny-coarse'"
    ):
        train_lm(refiner_config(data, coarse).model_copy(update={"clusters": str(data[1] / "others")}), tmp_path / "c")


def test_eval_of_every_kind(data, coarse, refiner, capsys):
    found = {}
    for name, out in (("coarse", coarse), ("both", refiner)):
        asked = ["eval", str(out / "model"), "--data", str(data[0] / "test"), "--no-speed", "--json"]
        assert run(asked) == 0
        found[name] = json.loads(capsys.readouterr().out)["loss"]["per_codebook"]
    model = load(refiner / "model")
    items = CodesDataset(Shards(data[0] / "test"), model.labels, None)
    batch = items.batch(range(len(items)))
    fine = model.lm.refiner.loss(batch.codes, batch.lengths, batch.conditions)
    labels = model.lm.coarse.loss(model.lm.clustering.coarse(batch.codes), batch.lengths, batch.conditions)
    assert found["coarse"] == pytest.approx(labels.per_codebook.tolist(), rel=1e-4)
    both = fine.per_codebook + labels.per_codebook * labels.count / fine.count
    assert found["both"] == pytest.approx(both.tolist(), rel=1e-4)
