"""Fine-tuning of public checkpoints: MusicGen's decoder there and back, and a text model as the backbone."""

import json
from pathlib import Path

import pytest
import torch

from tessera.cli.app import run
from tessera.configs.files import write_json
from tessera.configs.schema import ConfigError, check_config
from tessera.lm.checkpoints.model_directory import load_model
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.public.musicgen import load_musicgen
from tessera.lm.public.text_lm import backbone_settings, read_backbone
from tessera.tokenize.audio.networks import AudioTokenizerConfig
from tessera.tokenize.data.shard_file import write_shard
from tessera.tokenize.data.shard_index import Index
from tessera.tokenize.tokenizer import make_tokenizer
from tessera.train.distributed.process_group import ONE_PROCESS
from tessera.train.initialization.inherit_lm import inherit_lm
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.trainer import LMTrainer, train_lm

transformers = pytest.importorskip("transformers")

BOOKS, V, D, TEXT_WIDTH = 4, 16, 24, 12


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    """tokenizer/ of 4 codebooks, shards/ of its codes, and musicgen/, a tiny decoder with random weights."""
    folder = tmp_path_factory.mktemp("music")
    stack = {"width": 16, "layers": 1, "kernel": 3, "chunk": 8}
    described = {
        "name": "codec", "sample_rate": 4000, "hop": 40, "window": 160, "latent_dim": 8, "encoder": stack,
        "decoder": stack, "quantizer": {"kind": "residual", "levels": BOOKS, "quantizer": {"kind": "vq", "size": V}},
    }  # fmt: skip
    torch.manual_seed(0)
    tokenizer = make_tokenizer(check_config({"kind": "audio", **described}, AudioTokenizerConfig))
    tokenizer.save(folder / "tokenizer")
    draw = torch.Generator().manual_seed(1)
    (folder / "shards").mkdir()
    rows = [torch.randint(0, V, (BOOKS, 12), generator=draw) for _ in range(9)]
    file = write_shard(folder / "shards" / "00000.safetensors", tokenizer.spec, rows)
    index = Index(
        spec=tokenizer.spec, build="1" * 64, label_names=[], files=[file], skipped=[],
        ids=[str(number) for number in range(9)], lengths=[12] * 9, labels=[-1] * 9, texts=[None] * 9,
    )  # fmt: skip
    write_json(folder / "shards" / "index.json", index.model_dump(mode="json"))
    config = transformers.MusicgenDecoderConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=3, ffn_dim=40, num_codebooks=BOOKS,
        pad_token_id=V, bos_token_id=V,
    )  # fmt: skip
    transformers.MusicgenForCausalLM(config).save_pretrained(folder / "musicgen")
    return folder


def data_of(music: Path, source: Path, **changes) -> dict:
    return {
        "name": "tuned",
        "device": "cpu",
        "data": {"shards": str(music / "shards"), "embedding": "none"},
        "tokenizer": str(music / "tokenizer"),
        "init": {"from": str(source)},
        "train": {"steps": 3, "batch": 3, "lr": 1e-2, "warmup_steps": 1, "log_every": 1},
        "engine": {"kind": "torch"},
        "generation": {"max_frames": 4},
        "export": {"dtype": "float32"},
    } | changes


def config_of(data: dict) -> TrainConfig:
    return check_config(inherit_lm(data), TrainConfig)


def test_a_musicgen_decoder_is_trained_and_written_back(music, tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(data_of(music, music / "musicgen")))
    assert run(["train", str(path), "--out", str(tmp_path / "run")]) == 0
    model, back = tmp_path / "run" / "model", tmp_path / "back"
    assert run(["convert", str(model), str(back), "--to", "musicgen"]) == 0, capsys.readouterr().err
    theirs, info = transformers.MusicgenForCausalLM.from_pretrained(back, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours, given = load_model(model).lm, load_musicgen(music / "musicgen")
    for name, tensor in ours.state_dict().items():
        unread = "cross" in name or name.startswith("conditions.")  # the null of the embedding is zero: no gradient
        assert unread or not torch.equal(tensor, given.state_dict()[name]), name
    codes = torch.randint(V, (2, BOOKS, 6), generator=torch.Generator().manual_seed(3))
    conditions = ours.conditions.with_nulls(ConditionBatch(), 2)
    columns = ours.arrangement.arrange(codes).ids
    start = ours.start_ids(2).unsqueeze(-1)
    with torch.no_grad():
        found = ours(codes, None, conditions).logits
        states = torch.zeros(2, 1, D)
        expected = theirs.eval()(
            torch.cat([start, columns[:, :, :-1]], dim=2).flatten(0, 1), encoder_hidden_states=states
        ).logits
    torch.testing.assert_close(found, expected.view_as(found), atol=1e-4, rtol=1e-4)


def test_musicgen_without_saying_how_it_is_conditioned(music):
    data = data_of(music, music / "musicgen")
    del data["data"]["embedding"]
    with pytest.raises(ConfigError, match="data.embedding: none to train without"):
        config_of(data)


def test_low_rank_changes_of_musicgen(music, tmp_path):
    lora = {"rank": 2, "targets": ["attention.*", "cross.*"]}
    assert train_lm(config_of(data_of(music, music / "musicgen", lora=lora)), tmp_path / "run")
    assert run(["convert", str(tmp_path / "run" / "model"), str(tmp_path / "back"), "--to", "musicgen"]) == 0


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """A tiny Qwen3 with random weights, whose heads are wider than their share."""
    folder = tmp_path_factory.mktemp("qwen")
    config = transformers.Qwen3Config(
        vocab_size=30, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    torch.manual_seed(4)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


BACKBONE = {"variable_length": True, "arrangement": {"kind": "delay"}, "conditions": []}


def backbone_data(music: Path, qwen: Path, **changes) -> dict:
    data = data_of(music, qwen, lm=BACKBONE, **changes)
    del data["data"]["embedding"]
    return data


def test_the_blocks_of_a_text_model_become_the_backbone(music, qwen, tmp_path):
    config = config_of(backbone_data(music, qwen))
    made = LMTrainer(config, tmp_path / "a", ONE_PROCESS)
    own, given = made.average.model.state_dict(), read_backbone(qwen, config.lm)
    assert given.keys() == {name for name in own if name.startswith("transformer.")}
    assert all(torch.equal(own[name], tensor) for name, tensor in given.items())
    assert any("the rest, in head, input, starts at random" in note for note in made.start_notes)
    assert config.lm.head_width == 8 and config.lm.width == 24 and config.lm.qk_norm


def test_a_frozen_backbone_and_a_changed_one(music, qwen, tmp_path):
    frozen = backbone_data(music, qwen, init={"from": str(qwen), "freeze": ["transformer"]})
    lora = backbone_data(music, qwen, lora={"rank": 1, "train": ["input", "head"]})
    for name, data in (("frozen", frozen), ("lora", lora)):
        config = config_of(data)
        assert train_lm(config, tmp_path / name)
        given, made = read_backbone(qwen, config.lm), load_model(tmp_path / name / "model").lm.state_dict()
        equal = {tensor for tensor in given if torch.equal(given[tensor], made[tensor])}
        matrices = {tensor for tensor in given if given[tensor].dim() == 2}
        assert equal == (given.keys() if name == "frozen" else given.keys() - matrices)


WRONG = [
    ({"lm": BACKBONE | {"heads": 2}}, "init.from: lm.heads is 2, the blocks of .* need 4"),
    ({"lora": {"rank": 1}}, r"lora.train: 'input.table.weight' does not come from .* lora.train: \[input.table\]"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_a_wrong_backbone_says_so(music, qwen, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        LMTrainer(config_of(backbone_data(music, qwen) | changes), tmp_path / "a", ONE_PROCESS)


def test_an_unsupported_text_model_is_named(music, qwen, tmp_path):
    described = json.loads((qwen / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"hidden_act": "relu"}))
    with pytest.raises(ConfigError, match="init.from: .*config.json: hidden_act is 'relu'"):
        config_of(backbone_data(music, tmp_path))
    assert backbone_settings(qwen)["head_dim"] == 8
