"""A path given in place of another kind of path: what it is, and what to do with it, in one line."""

import shutil
from pathlib import Path

import pytest

import tessera
from tessera.configs.files import write_json
from tessera.configs.recognize import CONFIG_KINDS, config_kind, folder_kind
from tessera.configs.schema import ConfigError
from tessera.generate.loading import find_model
from tessera.lm.clustering.clustering import load_clustering
from tessera.lm.config import LMConfig
from tessera.tokenize.bundled import BUNDLED, CONFIGS, shipped_path
from tessera.tokenize.compression.integer_network import load_coder
from tessera.tokenize.data.corpus import ArraysCorpus
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig
from tessera.tokenize.tokenizer import find_tokenizer
from tessera.train.initialization.config import LMInitConfig
from tessera.train.initialization.origin import open_origin

OPENED = {
    "model": lambda path: tessera.load(path, "cpu"),
    "tokenizer": tessera.load_tokenizer,
    "shards": Shards,
    "clusters": load_clustering,
    "coder": load_coder,
}
"""What reads each kind of folder."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder of each kind, by its kind."""
    top = tmp_path_factory.mktemp("kinds")
    shutil.copytree(BUNDLED / "digits", top / "model")
    shutil.copytree(BUNDLED / "digits" / "tokenizer", top / "tokenizer")
    shutil.copytree(BUNDLED / "digits" / "coder", top / "coder")
    corpus = ArraysCorpus(path=str(shipped_path("samples/digits/test.safetensors")))
    build_shards(ShardsConfig(corpus=corpus, tokenizer="digits", out=str(top / "shards"), max_items=3), progress=False)
    write_json(top / "clusters" / "config.json", {"format": "tessera-clusters"})
    write_json(top / "foreign" / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    write_json(top / "run" / "config.json", {"name": "a", "lm": {}, "train": {}})
    write_json(top / "tokenizer run" / "train.json", {})
    return {path.name: path for path in top.iterdir()}


def test_every_kind_of_folder_is_known(folders):
    assert {kind: folder_kind(path) for kind, path in folders.items()} == {kind: kind for kind in folders}
    assert folder_kind(folders["model"] / "config.json") is None and folder_kind("nowhere") is None


@pytest.mark.parametrize("wanted", OPENED)
def test_another_kind_is_named(folders, wanted):
    """All pairs: what is there, what is needed, what to do with it."""
    for kind, path in folders.items():
        if kind == wanted or (kind, wanted) == ("model", "tokenizer"):  # a model has a tokenizer
            continue
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            OPENED[wanted](path)
        said = str(caught.value)
        assert said.startswith(f"{path}: this is a") and "is needed here; " in said and "\n" not in said, said
        assert "None" not in said and "PosixPath" not in said and "validation error" not in said, said


@pytest.mark.parametrize("wanted", OPENED)
def test_a_file_is_no_folder(folders, wanted, tmp_path):
    for path in (folders["model"] / "lm.safetensors", CONFIGS / "digits" / "lm.yaml", folders["model"] / "config.json"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"this is a .*needed here"):
            OPENED[wanted](path)


def test_public_checkpoints_of_another_use(tmp_path):
    """A codec where a model is needed, a language model where a tokenizer is: what it is, and where it is of use."""
    codec = Path(__file__).parent / "public" / "native_codecs" / "snac"
    with pytest.raises(ValueError, match=r"a public tokenizer \(snac\), a model is needed .*: tessera encode FILES"):
        tessera.load(codec)
    with pytest.raises(ConfigError, match=r"init.from: .* a public tokenizer \(snac\), a model is needed here"):
        open_origin(LMInitConfig.model_validate({"from": str(codec)}), LMConfig())
    write_json(tmp_path / "llama" / "config.json", {"model_type": "llama"})
    with pytest.raises(ValueError, match=r"a text language model without codes, a model is needed here; its blocks"):
        tessera.load(tmp_path / "llama")
    with pytest.raises(FileNotFoundError, match=r"model_type 'llama'\), a tokenizer is needed here; .* encodec, dac,"):
        tessera.load_tokenizer(tmp_path / "llama")
    write_json(tmp_path / "musicgen" / "config.json", {"model_type": "musicgen", "audio_encoder": {}})
    with pytest.raises(FileNotFoundError, match=r"the codec inside it is loaded from what this writes: tessera conv"):
        tessera.load_tokenizer(tmp_path / "musicgen")


@pytest.mark.parametrize("value", [3, None, b"digits", ["digits"], ""], ids=repr)
def test_what_is_no_path_is_named(value):
    said = r"is empty, which names nothing" if value == "" else r"must be a path or a name, found"
    for name, call in {
        "model": tessera.load,
        "tokenizer": tessera.load_tokenizer,
        "adapter": lambda value: tessera.load("digits", adapter=value),
        "lexicon": lambda value: tessera.load("voice", lexicon=value),
    }.items():
        if value is not None or name in ("model", "tokenizer"):
            with pytest.raises(ValueError, match=f"{name} {said}"):
                call(value)


@pytest.mark.parametrize("value", ["4", 2.0, True, [1]], ids=repr)
def test_what_is_no_number_is_named(value):
    codec = Path(__file__).parent / "public" / "native_codecs" / "snac"
    for option in ("codebooks", "image_size"):
        with pytest.raises(ValueError, match=f"{option} must be a whole number, found "):
            tessera.load_tokenizer(codec, **{option: value})
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16, float16 or a floating point type of torch"):
        tessera.load("digits", dtype=str(value))
    with pytest.raises(FileNotFoundError, match="nowhere: no tokenizer here"):
        tessera.load_tokenizer("nowhere", codebooks=4)


def test_configs_are_told_apart():
    from tessera.configs.schema import read_yaml

    for path in CONFIGS.rglob("*.yaml"):
        word = {"lm": "lm", "tokenize": "tokenizer"}.get(path.parent.name) or path.stem.split("-")[0]
        assert config_kind(read_yaml(path)) == word, path
    assert all(config_kind(data) is None for data in ({}, [], None, "lm", {"train": {}}, {"tokenizer": "x"}))
    assert set(CONFIG_KINDS) == {"lm", "tokenizer", "align", "shards", "coder"}


def test_a_run_leads_to_its_model(folders, tmp_path):
    shutil.copytree(folders["run"], tmp_path / "run")
    with pytest.raises(ValueError, match=r"a run of tessera train, a model is needed here; it has no model yet"):
        find_model(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="has no model yet"):
        find_tokenizer(tmp_path / "run")
    shutil.copytree(folders["model"], tmp_path / "run" / "model")
    assert find_model(tmp_path / "run") == tmp_path / "run" / "model"
    assert find_tokenizer(tmp_path / "run") == tmp_path / "run" / "model" / "tokenizer"
    (tmp_path / "run" / "model" / "config.json").unlink()  # half exported
    with pytest.raises(ValueError, match="has no model yet"):
        find_model(tmp_path / "run")


def test_names_of_tokenizers(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = tessera.load_tokenizer("digits").spec
    assert digits == tessera.load("digits").spec
    assert tessera.load_tokenizer("bundled/digits/tokenizer").spec == digits, "as in the repository"
    assert tessera.load_tokenizer(folders["model"]).spec == digits
    with pytest.raises(FileNotFoundError, match=r"digts: no tokenizer here.* did you mean 'digits'"):
        tessera.load_tokenizer("digts")
    (tmp_path / "digits").mkdir()
    assert tessera.load_tokenizer("digits").spec == digits, "an empty folder is in nobody's way"
    assert find_model("digits") == BUNDLED / "digits"
    shutil.copytree(BUNDLED / "speech" / "tokenizer", tmp_path / "digits", dirs_exist_ok=True)
    assert tessera.load_tokenizer("digits").spec.name != digits.name, "a tokenizer of the user's own comes first"


def test_shipped_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_path("samples/digits/test.safetensors").is_file()
    for path in ("samples/nowhere", "samples/../pyproject.toml", "configs/files.py", "/samples", ""):
        assert shipped_path(path) == type(tmp_path)(path)
    (tmp_path / "samples" / "digits").mkdir(parents=True)
    (tmp_path / "samples" / "digits" / "test.safetensors").write_bytes(b"")
    assert not shipped_path("samples/digits/test.safetensors").is_absolute(), "the user's own comes first"
