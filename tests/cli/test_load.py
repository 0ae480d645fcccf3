"""`tessera load`: what a folder is, without reading its weights."""

import json
import re
import shutil

import pytest
import torch

from tessera.cli.app import run
from tessera.configs import files
from tessera.configs.files import read_safetensors, write_safetensors
from tessera.lm.public.musicgen import save_musicgen
from tessera.lm.public.registry import load_public_model
from tessera.tokenize.bundled import BUNDLED

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from tiny_musicgen import make_composite, save_whole

    folder = tmp_path_factory.mktemp("whole")
    save_whole(folder, make_composite())
    return folder


def summary(capsys, path, code=0):
    """What --check says; it reads no tensor from a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_read_tensor", lambda *_: pytest.fail("weights were read"))
        return _summary(capsys, path, code)


def _summary(capsys, path, code):
    assert run(["load", str(path), "--check", "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_whole_musicgen(whole, capsys):
    assert run(["load", str(whole), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{whole}: musicgen"
    assert lines[1].startswith("  tokenizer: encodec-8khz: 4 codebooks of 32 codes, 1000 frames a second of 8000 Hz; ")
    assert lines[2].startswith("  language model: causal, 2 layers of width 24, 3 heads, 4 codebooks of 32 codes, ")
    assert lines[3].startswith("  text encoder: T5 of width 16; 0.00 M parameters in 11 tensors")
    assert lines[4].startswith("  not read: audio_encoder.quantizer.layers.0.codebook.cluster_size, ")
    assert len(lines) == 5
    found = summary(capsys, whole)
    held = len(read_safetensors(whole / "model.safetensors")[0])
    assert sum(part["num_tensors"] for part in found["parts"]) + len(found["left_out"]) == held


def test_it_reads_the_weights_without_check(whole):
    assert run(["load", str(whole)]) == 0


def test_a_decoder_alone_lacks_the_rest(whole, tmp_path, capsys):
    save_musicgen(tmp_path, load_public_model(whole).lm)
    found = summary(capsys, tmp_path)
    assert [part["name"] for part in found["parts"]] == ["language model"]
    assert found["lacks"] == ["the audio codec", "the text encoder"]


def test_missing_and_unexpected_tensors_are_listed(whole, tmp_path, capsys):
    tensors = read_safetensors(whole / "model.safetensors")[0]
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    tensors.pop("decoder.lm_heads.2.weight")
    tensors["decoder.lm_heads.9.weight"] = torch.zeros(2)
    tensors["audio_encoder.decoder.layers.0.conv.bias"] = torch.zeros(3)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    found = summary(capsys, tmp_path, code=1)
    codec, lm, _ = found["parts"]
    assert lm["missing"] == ["decoder.lm_heads.2.weight"]
    assert lm["unexpected"] == ["decoder.lm_heads.9.weight"]
    assert codec["misshapen"] == ["audio_encoder.decoder.layers.0.conv.bias [3], required [8]"]
    assert found["lacks"] == ["the files of the text encoder's tokenizer"]
    assert found["fits"] is False
    assert run(["load", str(tmp_path), "--check"]) == 1
    assert "    missing: decoder.lm_heads.2.weight" in capsys.readouterr().out.splitlines()


def test_tesseras_own_and_codecs(whole, tmp_path, capsys):
    found = summary(capsys, "digits")
    assert found["kind"] == "model"
    assert [part["name"] for part in found["parts"]] == ["tokenizer", "language model"]
    assert "conditioned on label" in found["parts"][1]["described"]
    config = transformers.EncodecConfig(num_filters=2, hidden_size=8, upsampling_ratios=[3, 2], num_lstm_layers=1)
    config.target_bandwidths = [80.0]
    transformers.EncodecModel(config).save_pretrained(tmp_path)
    found = summary(capsys, tmp_path)
    assert found["kind"] == "encodec" and found["fits"]
    assert found["parts"][0]["described"].startswith("encodec-24khz: 2 codebooks of 1024 codes, 4000 frames a second")
    for name in ("voice", "bundled/digits/tokenizer"):
        assert summary(capsys, name)["fits"]


def test_nothing_that_is_known(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert run(["load", str(tmp_path), "--check"]) == 2
    said = capsys.readouterr().err
    assert "model_type is 'bert'; known are the language models musicgen, " in said and ", var, the tok" in said
    assert "the tokenizers encodec, dac, " in said and "the text models llama, qwen2, qwen3" in said
    (tmp_path / "empty").mkdir()
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "llama" / "model.safetensors").write_bytes(b"")
    wanted = {
        "llama/config.json": r"this is a file of its folder, a model or tokenizer is needed here; name the folder: ",
        "llama/model.safetensors": r"this is a file of its folder, .* name the folder: \S+llama$",
        "none": r"none: no such file or folder; name a public checkpoint, or a Tessera model or tokenizer$",
        "empty": r"empty: no model, tokenizer or checkpoint here \(config.json is missing\); name a folder with",
        "llama": r"this is a text language model .* init: {from: \S+llama} in the config of tessera train$",
    }
    for name, pattern in wanted.items():
        assert run(["load", str(tmp_path / name), "--check"]) == 2
        said = capsys.readouterr().err.strip()
        assert re.search(pattern, said) and "\n" not in said, said


def test_a_run_is_its_model(tmp_path, capsys):
    shutil.copytree(BUNDLED / "digits", tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text('{"lm": {}, "train": {}}')
    assert summary(capsys, tmp_path / "run")["kind"] == "model"
    shutil.rmtree(tmp_path / "run" / "model")
    assert run(["load", str(tmp_path / "run"), "--check"]) == 2
    assert "a run of tessera train, a model or tokenizer is needed here; it has no model" in capsys.readouterr().err
