"""MusicGen learns from texts: the states of its text encoder in training are those of generation, whole and resumed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_musicgen import make_composite, save_whole, transformers

import tessera
from tessera.cli.app import run
from tessera.configs.files import write_json
from tessera.configs.schema import ConfigError, check_config
from tessera.lm.conditioning.text_encoder import open_text_encoder
from tessera.tokenize.data.shard_file import write_shard
from tessera.tokenize.data.shard_index import Index
from tessera.train.common.text_states import TextStates
from tessera.train.distributed.process_group import ONE_PROCESS
from tessera.train.initialization.inherit_lm import inherit_lm
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.objective import Objective
from tessera.train.lm.setup import open_parts
from tessera.train.lm.trainer import train_lm

BOOKS, V = 4, 32
TEXTS = ["a calm piano", "drums", "a piano and drums and a calm piano", "calm drums"]


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """hub/ of transformers, ours/ converted from it, and shards/ whose codes follow from their texts."""
    folder = tmp_path_factory.mktemp("music")
    save_whole(folder / "hub", make_composite())
    assert run(["convert", str(folder / "hub"), str(folder / "ours")]) == 0
    write_shards(folder / "shards", folder / "ours", TEXTS * 3)
    return folder


def write_shards(folder, model, texts):
    """Twelve frames of each text: the same codes for the same text."""
    spec = tessera.load_tokenizer(model).spec
    folder.mkdir()
    codes = [torch.randint(V, (BOOKS, 12), generator=torch.Generator().manual_seed(len(text or ""))) for text in texts]
    file = write_shard(folder / "00000.safetensors", spec, codes)
    index = Index(
        spec=spec, build="1" * 64, label_names=[], files=[file], skipped=[], ids=[str(n) for n in range(len(texts))],
        lengths=[12] * len(texts), labels=[-1] * len(texts), texts=texts,
    )  # fmt: skip
    write_json(folder / "index.json", index.model_dump(mode="json"))


def data_of(music, source="hub", **changes):
    return {
        "name": "tuned",
        "device": "cpu",
        "data": {"shards": str(music / "shards"), "embedding": "text"},
        "tokenizer": str(music / "ours" / "tokenizer"),
        "init": {"from": str(music / source)},
        "train": {"steps": 4, "batch": 6, "micro_batch": 3, "lr": 1e-2, "warmup_steps": 1, "log_every": 1},
        "engine": {"kind": "torch"},
        "generation": {"max_frames": 4},
        "export": {"dtype": "float32"},
    } | changes


def config_of(data):
    return check_config(inherit_lm(data), TrainConfig)


def test_states_are_those_of_generation_and_padding_is_masked(music, tmp_path):
    parts = open_parts(config_of(data_of(music)), tmp_path, ONE_PROCESS)
    rows = [0, 2, 1]
    found = parts.items.batch(rows).conditions
    expected = tessera.load(music / "ours", device="cpu").text_encoder.encode([TEXTS[row] for row in rows])
    assert found.embedding_lengths.tolist() == [len(one) for one in expected] and len({*map(len, expected)}) > 1
    for row, states in zip(found.embedding, expected, strict=True):
        assert torch.equal(row[: len(states)], states)
    lm = parts.first_lm(config_of(data_of(music))).eval()
    objective = Objective(lm)
    with torch.no_grad():
        batch = parts.items.batch(rows)
        noise = torch.arange(batch.conditions.embedding.shape[1]) >= found.embedding_lengths[:, None]
        noisy = batch.conditions.embedding + noise[..., None] * torch.randn(1)
        together = objective(batch.codes, None, replace(batch.conditions, embedding=noisy))[1]
        alone = sum(objective(one.codes, None, one.conditions)[1] for one in (parts.items.batch([row]) for row in rows))
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("source", ["hub", "ours"])
def test_a_model_learns_from_texts_and_is_written_back(source, music, tmp_path, capsys):
    path, out, back = tmp_path / "c.yaml", tmp_path / "run", tmp_path / "back"
    train = {"steps": 12, "batch": 12, "lr": 1e-2, "warmup_steps": 1, "log_every": 1, "sample_every": 12, "samples": 2}
    path.write_text(json.dumps(data_of(music, source, train=train)))
    assert run(["train", str(path), "--out", str(out)]) == 0, capsys.readouterr().err
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in losses if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    samples = json.loads((out / "samples" / "step-00000012" / "samples.json").read_text())
    assert [one["text"] for one in samples] == TEXTS[:2]
    assert run(["convert", str(out / "model"), str(back), "--to", "musicgen"]) == 0
    theirs, report = transformers.MusicgenForConditionalGeneration.from_pretrained(back, output_loading_info=True)
    assert not any(report.values())
    ours = tessera.load(out / "model", device="cpu")
    tokens = transformers.T5Tokenizer.from_pretrained(back)(TEXTS, padding=True, return_tensors="pt")
    codes = torch.randint(V, (4, BOOKS, 6), generator=torch.Generator().manual_seed(3))
    columns = ours.lm.arrangement.arrange(codes).ids
    read = torch.cat([ours.lm.start_ids(4).unsqueeze(-1), columns[:, :, :-1]], dim=2)
    conditions = TextRows(ours).batch(TEXTS)
    with torch.no_grad():
        found = ours.lm(codes, None, conditions).logits
        expected = theirs.eval()(**tokens, decoder_input_ids=read.flatten(0, 1)).logits.view_as(found)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


class TextRows:
    """The conditions of texts, as generation makes them."""

    def __init__(self, model):
        self.model = model

    def batch(self, texts):
        from tessera.generate.named_inputs import condition_inputs

        inputs = condition_inputs(self.model, None, texts, None, None, None, False, [])
        return inputs.rows(self.model.lm, 1)[0]


def test_resumed_it_is_the_same_run(music, tmp_path):
    """Also without the model that it started from: the run's folder has the text encoder."""
    copied = tmp_path / "music"
    shutil.copytree(music, copied)
    data = data_of(copied)
    assert train_lm(config_of(data), tmp_path / "whole")
    half = data | {"train": data["train"] | {"steps": 2}}
    assert train_lm(config_of(half), tmp_path / "parts")
    longer = config_of(half)
    settings = longer.train.model_copy(update={"steps": 4})
    shutil.rmtree(copied / "hub")
    assert train_lm(longer.model_copy(update={"train": settings}), tmp_path / "parts", resume=True)
    whole, parts = (tmp_path / name / "model" for name in ("whole", "parts"))
    assert (whole / "text_encoder" / "model.safetensors").read_bytes() == (
        parts / "text_encoder" / "model.safetensors"
    ).read_bytes()
    again = tmp_path / "again"
    assert run(["export", str(tmp_path / "whole"), "--out", str(again)]) == 0
    for name in ("lm.safetensors", "text_encoder/model.safetensors", "text_encoder/config.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name
    weights = tmp_path / "parts" / "text_encoder" / "model.safetensors"
    other = make_composite(seed=5).text_encoder
    other.save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "model.safetensors", weights)
    with pytest.raises(ConfigError, match="text tokenizer or encoder beside the checkpoints, are not those that"):
        train_lm(longer.model_copy(update={"train": settings}), tmp_path / "parts", resume=True)


def test_the_course_of_a_resumed_run(music, tmp_path):
    """Stopped and resumed, a run has the weights of the run in one piece, bit for bit."""
    data = data_of(music)
    data["train"] |= {"save_every": 2, "keep": {"last": 9}}
    assert train_lm(config_of(data), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts", ignore=shutil.ignore_patterns("*4", "model", "FINISHED"))
    assert train_lm(config_of(data), tmp_path / "parts", resume=True)
    whole, parts = (tmp_path / name / "model" / "lm.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_what_is_dropped_from_memory_is_encoded_again(music):
    encoder = open_text_encoder(music / "ours" / "text_encoder")
    all_held, one_held = TextStates(encoder), TextStates(encoder, most_bytes=1)
    for text in TEXTS + TEXTS[::-1]:
        assert torch.equal(all_held(text), one_held(text))
    assert len(one_held._held) == 1 and len(all_held._held) == len(TEXTS)
    assert all_held(TEXTS[0]) is all_held(TEXTS[0])
    assert all_held.fingerprint == one_held.fingerprint


def test_captions_are_read(music, tmp_path):
    write_shards(tmp_path / "shards", music / "ours", ["a calm piano | drums"] * 8)
    data = data_of(music)
    data["data"] |= {"shards": str(tmp_path / "shards"), "captions": {"kind": "alternatives"}}
    parts = open_parts(config_of(data), tmp_path, ONE_PROCESS)
    first = parts.items.batch(np.arange(8)).conditions.embedding_lengths
    assert len(set(first.tolist())) == 1  # evaluation reads the first
    assert len(set(parts.items.batch(np.arange(8), 3).conditions.embedding_lengths.tolist())) == 2


def test_what_is_missing_is_said(music, tmp_path):
    write_shards(tmp_path / "mute", music / "ours", ["drums", None, " "])
    data = data_of(music)
    data["data"]["shards"] = str(tmp_path / "mute")
    with pytest.raises(
        ValueError, match="2 of 3 items lack a condition input of the model .'1': no text; '2': the text"
    ):
        open_parts(config_of(data), tmp_path, ONE_PROCESS)
    data["data"]["missing"] = "skip"
    assert len(open_parts(config_of(data), tmp_path, ONE_PROCESS).items) == 1
    lm = tessera.load(music / "hub", device="cpu").lm
    from tessera.lm.public.musicgen import save_musicgen

    save_musicgen(tmp_path / "bare", lm)
    bare = data_of(music, init={"from": str(tmp_path / "bare")})
    with pytest.raises(ConfigError, match="data.embedding: text needs the text encoder, and .*bare has none"):
        open_parts(config_of(bare), tmp_path, ONE_PROCESS)
    named = bare | {"text_encoder": str(music / "ours" / "text_encoder")}
    assert open_parts(config_of(named), tmp_path, ONE_PROCESS).text_encoder is not None
    wide = make_composite(text_width=24)
    wide.text_encoder.save_pretrained(tmp_path / "wide")
    with pytest.raises(ConfigError, match="its states are 24 wide, the condition embedding of lm.conditions reads 16"):
        open_parts(config_of(bare | {"text_encoder": str(tmp_path / "wide")}), tmp_path, ONE_PROCESS)
    nothing = data_of(music)
    del nothing["data"]["embedding"]
    with pytest.raises(ConfigError, match="set data.embedding: text for the states"):
        config_of(nothing)
    shutil.copytree(music / "hub", tmp_path / "untold", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(FileNotFoundError, match="the text encoder's tokenizer is missing"):
        train_lm(config_of(data_of(music, init={"from": str(tmp_path / "untold")})), tmp_path / "run")


def test_without_texts_the_text_encoder_stays_in_the_model(music, tmp_path):
    data = data_of(music)
    data["data"]["embedding"] = "none"
    assert train_lm(config_of(data), tmp_path / "run")
    assert tessera.load(tmp_path / "run" / "model", device="cpu").generate(text="drums", num_frames=2)
