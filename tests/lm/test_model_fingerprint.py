"""The fingerprint of a model directory: what was written is loaded, anything else is refused by the file's name."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

import tessera
from tessera.configs.files import DamagedFile, read_json, write_json, write_sealed_json
from tessera.configs.fingerprint import FINGERPRINT_FILE, MODEL_FILES
from tessera.lm.checkpoints.model_directory import load_lm, load_model, save_lm, save_model, seal_model
from tessera.lm.heads.registry import ParallelHeadConfig
from tessera.lm.layers.input_embedding import EmbeddingInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.tokenize.bundled import BUNDLED
from tessera.tokenize.compression.integer_network import load_coder
from tessera.tokenize.tokenizer import load_tokenizer


@pytest.fixture
def model(tmp_path) -> Path:
    shutil.copytree(BUNDLED / "speech", tmp_path / "m")
    return tmp_path / "m"


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["digits", "speech"])
def test_bundled_models_are_sealed(name, capsys):
    listed = set(read_json(BUNDLED / name / FINGERPRINT_FILE)["files"])
    found = {path.relative_to(BUNDLED / name).as_posix() for path in (BUNDLED / name).rglob("*") if path.is_file()}
    assert listed == found - {"README.md", FINGERPRINT_FILE}
    load_model(BUNDLED / name)
    assert capsys.readouterr().err == ""


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", [*MODEL_FILES, FINGERPRINT_FILE])
def test_a_changed_byte_is_refused_by_name(model, name):
    path = model / name
    if not path.exists():
        pytest.skip(f"the bundled model has no {name}")
    size = path.stat().st_size
    draw = random.Random(name)
    for position in (0, size - 1, draw.randrange(size)):
        flip(path, position, draw.randrange(8))
        with pytest.raises(ValueError) as error:
            load_model(model)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
        path.write_bytes((BUNDLED / "speech" / name).read_bytes())
    load_model(model)


@pytest.mark.parametrize("name", ["config.json", "lm.safetensors", "text.model", "tokenizer/tokenizer.safetensors"])
def test_cut_missing_and_extra_files_are_refused_by_name(model, name):
    os.truncate(model / name, (model / name).stat().st_size - 1)
    with pytest.raises(DamagedFile, match=rf"{name}: damaged or changed: it has \d+ bytes, fingerprint.json says \d+"):
        load_model(model)
    (model / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_model(model)
    shutil.copy(BUNDLED / "speech" / name, model / name)
    shutil.copy(BUNDLED / "speech" / "lm.safetensors", model / "coarse.safetensors")
    with pytest.raises(DamagedFile, match=r"coarse.safetensors: fingerprint.json does not list it; remove it"):
        load_model(model)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.manual_seed(0)
    digits = load_model(BUNDLED / "digits")
    config = digits.lm.config
    vectors = digits.tokenizer.vectors()
    for name in ("one", "two"):
        parts = (digits.tokenizer, digits.text, digits.labels)
        save_model(tmp_path / name, TokenLM(config, digits.spec, vectors), *parts)
    shutil.copy(tmp_path / "one" / "lm.safetensors", tmp_path / "two")
    with pytest.raises(DamagedFile, match=r"two/lm.safetensors: damaged: its SHA-256 is"):
        load_model(tmp_path / "two")


def test_a_language_model_alone_is_sealed(tmp_path):
    digits = load_model(BUNDLED / "digits")
    config = digits.lm.config.model_copy(update={"input": EmbeddingInputConfig(), "head": ParallelHeadConfig()})
    save_lm(tmp_path / "m", TokenLM(config, digits.spec), digits.labels)
    load_lm(tmp_path / "m")
    seal_model(tmp_path / "m")
    flip(tmp_path / "m" / "lm.safetensors", -1, 0)
    with pytest.raises(DamagedFile, match=r"m/lm.safetensors: damaged: its SHA-256 is"):
        load_lm(tmp_path / "m")


def test_directories_of_earlier_versions_are_loaded_with_one_warning(model, capsys):
    (model / FINGERPRINT_FILE).unlink()
    load_model(model)
    load_model(model)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"warning: {model} has no fingerprint.json (earlier versions wrote none), so damage to its files would go "
        f"unnoticed; write one with: tessera seal {model}"
    ]


def test_seal_after_an_edit(model):
    config = read_json(model / "config.json")
    config["generation"]["top_k"] = 3
    write_json(model / "config.json", config)
    with pytest.raises(DamagedFile, match=rf"config.json: .* changed on purpose, run: tessera seal {model}"):
        tessera.load(model)
    assert "config.json" in seal_model(model)
    assert tessera.load(model).defaults.top_k == 3
    before = (model / FINGERPRINT_FILE).read_bytes()
    write_json(model / "config.json", config | {"labels": ["too", "many"]})
    with pytest.raises(ValueError):
        seal_model(model)
    assert (model / FINGERPRINT_FILE).read_bytes() == before, "what cannot be used is not sealed"


def test_a_coder_written_into_a_model_is_sealed_with_it(model):
    coder = load_coder(model / "coder")
    shutil.rmtree(model / "coder")
    with pytest.raises(FileNotFoundError, match=r"coder.json: no such file, but fingerprint.json lists it"):
        load_model(model)
    coder.save(model / "coder")
    load_model(model)


def test_what_a_fingerprint_may_say(model):
    path = model / FINGERPRINT_FILE
    whole = read_json(path)
    del whole["sha256"]
    for change, message in (
        ({"version": 2}, "version"),
        ({"files": whole["files"] | {"../x": whole["files"]["config.json"]}}, r"lists '\.\./x', which is not a file"),
        ({"files": whole["files"] | {"config.json": {"bytes": 1, "sha256": "x"}}}, "sha256"),
        ({"files": {}}, "does not list it"),
    ):
        write_sealed_json(path, whole | change)
        with pytest.raises(ValueError, match=message):
            load_model(model)
    path.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"fingerprint\.json"):
        load_model(model)


def test_parts_are_checked_by_themselves(model):
    for part, files, load in (
        ("tokenizer", ("config.json", "tokenizer.safetensors"), load_tokenizer),
        ("coder", ("coder.json", "coder.safetensors"), load_coder),
    ):
        for name in files:
            path = model / part / name
            whole, draw = path.read_bytes(), random.Random(name)
            for _ in range(5):
                position, bit = draw.randrange(len(whole)), draw.randrange(8)
                flip(path, position, bit)
                with pytest.raises((ValueError, FileNotFoundError), match=str(model / part)):
                    load(model / part)
                path.write_bytes(whole)


@pytest.mark.parametrize("what", ["a folder", "a pipe", "a link to nothing"])
def test_a_fingerprint_that_is_no_file_is_damage_and_not_an_earlier_version(model, what):
    path = model / FINGERPRINT_FILE
    path.unlink()
    {"a folder": path.mkdir, "a pipe": lambda: os.mkfifo(path), "a link to nothing": lambda: path.symlink_to("x")}[
        what
    ]()
    with pytest.raises(DamagedFile, match=f"{FINGERPRINT_FILE}: no such file, or a broken link; copy the model again"):
        load_model(model)


def test_a_label_name_that_occurs_twice_is_refused(tmp_path):
    shutil.copytree(BUNDLED / "digits", tmp_path / "m")
    config = read_json(tmp_path / "m" / "config.json")
    config["labels"][1] = config["labels"][0]
    write_json(tmp_path / "m" / "config.json", config)
    (tmp_path / "m" / FINGERPRINT_FILE).unlink()
    with pytest.raises(ValueError, match="the label name '0' occurs twice"):
        load_model(tmp_path / "m")
