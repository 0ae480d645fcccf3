"""Shipped configs: listed, shown, copied, found by name from an empty folder, and never taken for another verb's."""

import re
from pathlib import Path

import pytest

from tessera.cli.app import run
from tessera.cli.commands.configs import read_head
from tessera.cli.config_files import all_configs, find_config, kind_of_name, open_config, shipped_file
from tessera.configs.recognize import CONFIG_KINDS
from tessera.tokenize.bundled import CONFIGS
from tessera.tokenize.data.shards_config import ShardsConfig

VERBS = {
    "lm": ["train"],
    "tokenizer": ["tokenizer", "train"],
    "shards": ["shards"],
    "coder": ["tokenizer", "coder"],
}
EXAMPLES = {"lm": "own-speech/lm", "tokenizer": "tokenize/mimi", "shards": "digits/shards", "coder": "speech/coder"}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def out_for(kind: str) -> list[str]:
    return ["--out", "made"] if kind in ("tokenizer", "coder") else []


@pytest.mark.slow
def test_all_are_listed_with_what_they_are(capsys):
    assert run(["configs"]) == 0
    printed = capsys.readouterr().out
    for path in CONFIGS.rglob("*.yaml"):
        name = path.relative_to(CONFIGS).with_suffix("").as_posix()
        head = read_head(name)
        assert f"  {name} " in printed and head.about in printed and head.command in printed
        assert 15 < len(head.about) < 230 and "tessera " not in head.about.replace("`tessera", ""), head
        assert head.cost or name.endswith("shards"), "time or hardware of each"


def test_one_is_printed_as_it_is(capsys):
    assert run(["configs", "own-speech/lm"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "own-speech" / "lm.yaml").read_text()
    assert run(["configs", "configs/own-speech/lm.yaml"]) == 0 and run(["configs", "musicgen"]) == 0
    assert run(["configs", "own-speech"]) == 0
    listed = capsys.readouterr().out
    assert all(f"own-speech/{name}" in listed for name in ("lm", "shards", "tokenizer"))


def test_a_folder_is_copied_whole_and_speaks_of_the_copy(tmp_path, capsys):
    assert run(["configs", "own-speech", "--copy", "mine"]) == 0
    names = ("align", "lm", "shards", "tokenizer")
    assert capsys.readouterr().out.split() == [f"mine/{name}.yaml" for name in names]
    for name in names:
        text = (tmp_path / "mine" / f"{name}.yaml").read_text()
        assert f" mine/{name}.yaml" in text and "configs/" not in text
        settings = [line for line in text.splitlines() if not line.startswith("#")]
        original = (CONFIGS / "own-speech" / f"{name}.yaml").read_text().splitlines()
        assert settings == [line for line in original if not line.startswith("#")]
    (tmp_path / "mine" / "lm.yaml").write_text("mine")
    (tmp_path / "mine" / "shards.yaml").unlink()
    assert run(["configs", "own-speech", "--copy", "mine"]) == 2
    there = "mine/align.yaml, mine/lm.yaml, mine/tokenizer.yaml"
    assert f"{there}: already present, nothing was copied" in capsys.readouterr().err
    assert (tmp_path / "mine" / "lm.yaml").read_text() == "mine" and not (tmp_path / "mine" / "shards.yaml").exists()
    assert run(["configs", "--copy", "all"]) == 0
    assert len(list((tmp_path / "all").rglob("*.yaml"))) == len(all_configs())


@pytest.mark.sample(2)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("given", VERBS)
def test_a_config_of_another_verb_is_named(given, verb, tmp_path, capsys):
    """All pairs, by the name of a shipped one and by the path of a copy."""
    if given == verb:
        return
    (tmp_path / "own.yaml").write_text(shipped_file(EXAMPLES[given]).read_text())
    for config in (EXAMPLES[given], "own.yaml"):
        assert run([*VERBS[verb], config, *out_for(verb)]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert (
            f"{config}: this is {CONFIG_KINDS[given][0]}, {CONFIG_KINDS[verb][1]} needs {CONFIG_KINDS[verb][0]}" in said
        )
        assert said.endswith(f"; use it with: {CONFIG_KINDS[given][1]} {config}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", VERBS)
def test_names_lead_to_files(kind):
    for name in all_configs():
        if kind_of_name(name) != kind:
            continue
        for given in (name, f"{name}.yaml", f"configs/{name}.yaml"):
            assert find_config(given, kind) == shipped_file(name)
    folder, word = EXAMPLES[kind].split("/")
    if kind != "tokenizer":
        assert find_config(folder, kind) == shipped_file(EXAMPLES[kind]), "the folder has one of that kind"
    else:
        assert find_config(word, kind) == shipped_file(EXAMPLES[kind]), "the last part is enough"
    assert find_config("var", "lm") == shipped_file("lm/var")
    assert find_config("var", "tokenizer") == shipped_file("tokenize/var")


def test_a_file_of_the_users_comes_first(tmp_path):
    own = tmp_path / "own-speech" / "lm"
    own.parent.mkdir()
    own.write_text("name: mine")
    assert find_config("own-speech/lm", "lm") == Path("own-speech/lm")
    assert find_config("own-speech/shards", "shards") == shipped_file("own-speech/shards")


def test_data_that_come_with_the_package_are_found(tmp_path):
    read = open_config("digits/shards", "shards", ["tokenizer=bundled/digits/tokenizer"]).read_as(ShardsConfig)
    assert Path(read.corpus.path).is_file() and (Path(read.tokenizer) / "config.json").is_file()
    assert read.out == "out/digits/shards/train", "what is written stays where the user is"
    (tmp_path / "samples" / "digits").mkdir(parents=True)
    (tmp_path / "samples" / "digits" / "train.safetensors").touch()
    assert (
        open_config("digits/shards", "shards", []).read_as(ShardsConfig).corpus.path
        == "samples/digits/train.safetensors"
    )


def test_another_kind_leaves_the_fields_of_the_old_one_behind(tmp_path):
    from tessera.train.lm.config import TrainConfig

    text = (CONFIGS / "digits" / "lm.yaml").read_text() + "engine: {kind: deepspeed, zero_stage: 2}\n"
    (tmp_path / "own.yaml").write_text(re.sub(r"(?m)^engine:(?! \{kind: deepspeed, zero).*\n( .*\n)*", "", text))
    read = open_config("own.yaml", "lm", ["engine.kind=torch"]).read_as(TrainConfig)
    assert read.engine.kind == "torch"


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "own-speach/lm"], "did you mean 'own-speech/lm'"),
        (["train", "musicgne"], "did you mean 'lm/musicgen'"),
        (["train", "lm"], "several configs come with Tessera under that name: lm/csm, "),
        (
            ["train", "qwertz"],
            "no such file, and no config of that name comes with Tessera; tessera configs lists them",
        ),
        (
            ["train", "tokenize"],
            "a language model's config is needed here, that name belongs to others: tokenize/alternating",
        ),
        (["train", "."], "this is a folder of configs, a language model's config is needed here; "),
        (["shards", "bundled/digits"], "bundled/digits: no such file, and no config"),
        (["configs", "own-sppech"], "did you mean 'own-speech'"),
        (["configs", "own.yaml"], "own.yaml: a local file, not one of the configs that come with Tessera"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_is_said(words, message, tmp_path, capsys):
    (tmp_path / "own.yaml").touch()
    assert run(words) == 2
    assert message in capsys.readouterr().err
    assert not any(path.name != "own.yaml" for path in tmp_path.iterdir()), "nothing is written"


@pytest.mark.slow
def test_the_shipped_samples_are_found(capsys):
    assert run(["encode", "samples/speech/test", "--tokenizer", "speech", "-o", "c.safetensors"]) == 0
    assert "c.safetensors: 100 items" in capsys.readouterr().err
    evaluate = ["tokenizer", "eval", "digits", "--items", "4", "--json"]
    assert run([*evaluate, "--data", "samples/digits/test.safetensors"]) == 0
    assert run([*evaluate, "--data", "samples/digits/nothing.safetensors"]) == 2


@pytest.mark.slow
def test_the_shipped_small_one_runs_from_an_empty_folder(tmp_path):
    """As after `pip install`: a bundled tokenizer by its name, shipped data, a few steps."""
    sets = ["--set", "tokenizer=digits", "--set", "max_items=32", "--set", "out=s"]
    assert run(["shards", "digits/shards", *sets]) == 0
    small = ["lm.width=16", "lm.layers=1", "lm.heads=2", "train.steps=2", "train.batch=4", "train.sample_every=null"]
    given = ["tokenizer=digits", "data.shards=s", "data.test=null", "train.eval_every=null", *small]
    assert run(["train", "digits/lm", "--out", "run", *[part for one in given for part in ("--set", one)]]) == 0
    assert run(["image", "7", "--model", "run", "-o", "seven.png"]) == 0, "the run is taken for its model"
    assert run(["encode", "seven.png", "--tokenizer", "digits", "-o", "c.safetensors", "--fit", "stretch"]) == 0
