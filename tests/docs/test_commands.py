"""What the README and the pages tell a reader to type: commands and options exist, and what is cheap is run."""

import os
import re
import shlex
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT, blocks, read

TEXTS = {"README.md": read(ROOT / "README.md")} | {name: read(path) for name, path in PAGES.items()}
HOW_TO = "how-to/"  # test_how_to.py runs those


def commands(text: str) -> list[str]:
    """Lines of the unmarked code blocks that begin with a program, comments removed."""
    lines = "".join(block.text for block in blocks(text) if not block.language).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if re.match(r"(tessera|make|python) ", line)]


def tessera_commands() -> list[str]:
    found = {}
    for text in TEXTS.values():
        inline = re.findall(r"`(tessera [a-z][^`]*)`", text)
        for line in [*commands(text), *inline]:
            found[line.split(" | ")[0]] = None
    return [line for line in found if line.startswith("tessera ") and line.split()[1].islower()]


def python_blocks() -> list[tuple[str, str]]:
    return [
        (name, block.text)
        for name, text in TEXTS.items()
        if not name.startswith(HOW_TO)
        for block in blocks(text)
        if block.language == "python"
    ]


def test_there_are_commands():
    assert len(tessera_commands()) >= 25 and len(python_blocks()) >= 6


@pytest.mark.parametrize("line", tessera_commands())
def test_tessera_commands_and_options_exist(line):
    from tessera.cli import app

    command, rest = app.commands(), shlex.split(line)[1:]
    while hasattr(command, "commands") and rest and rest[0].islower():
        verb = rest.pop(0)
        assert verb in command.commands, f"{line}: no command '{verb}'"
        command = command.commands[verb]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = [word for word in rest if re.fullmatch(r"-[a-z]|--[a-z-]+", word)]
    assert set(options) <= known, f"{line}: known options are {sorted(known)}"
    for word in rest:
        if word.startswith("configs/"):
            assert (ROOT / word).exists(), f"{line}: no {word}"


def test_every_public_layout_is_shown_and_exists():
    from tessera.lm.public.registry import PUBLIC
    from tessera.tokenize.public.registry import PUBLIC_CODECS

    shown = set(re.findall(r"--to ([a-z0-9-]+)", TEXTS["public-models.md"]))
    assert shown == (PUBLIC.keys() | PUBLIC_CODECS.keys()) - {"transformers"}  # which is never written


def test_make_targets_exist():
    makefile = read(ROOT / "Makefile")
    for name, text in TEXTS.items():
        mentioned = {line.split()[1] for line in commands(text) if line.startswith("make ")}
        mentioned |= set(re.findall(r"`make ([a-z-]+)", text))
        for target in mentioned:
            assert re.search(rf"^{target}:", makefile, flags=re.M), f"{name}: make {target}"


def test_scripts_exist():
    for name, text in TEXTS.items():
        for script in re.findall(r"python ((?:benchmarks|docs)/\S+\.py)", text):
            assert (ROOT / script).is_file(), f"{name}: {script}"


@pytest.mark.parametrize("code", [code for _, code in python_blocks()], ids=[name for name, _ in python_blocks()])
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "page", "exec"), {"__name__": "page"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["speech", "images"])
def test_tutorials_run(kind, tmp_path, monkeypatch):
    """A folder of one's own media, by the tutorial alone, with few steps and small networks."""
    from tessera.cli.app import run

    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "configs", tmp_path / "configs")
    {"speech": make_recordings, "images": make_pictures}[kind]()
    for line in commands(read(DOCS / "tutorials" / f"{kind}.md")):
        arguments = shlex.split(line)[1:]
        if "train" in arguments[:2]:
            arguments += ["--set", "train.steps=3", "--set", "train.batch=2"]
        if arguments[0] == "train":
            arguments += ["--set", "train.sample_every=null", "--set", "data.pool_batches=1"]
        if arguments[0] == "tts":
            arguments += ["--max-seconds", "0.5"]
        assert run(arguments) == 0, line


def make_recordings() -> None:
    """Twenty short tones with transcripts: enough for both parts of the split."""
    import torch

    from tessera.tokenize.data.media import write_audio

    os.mkdir("recordings")
    for number in range(20):
        tone = 0.3 * torch.sin(torch.arange(32000) * (0.05 + 0.01 * number))[None]
        write_audio(Path("recordings") / f"{number}.wav", tone, 16000)
        Path(f"recordings/{number}.txt").write_text(f"tone number {number} of the recordings\n")


def make_pictures() -> None:
    """Twenty images of two labels, larger than the tokenizer's."""
    import torch

    from tessera.tokenize.data.media import write_image

    os.mkdir("pictures")
    for number in range(20):
        write_image(Path("pictures") / f"{number}.png", torch.rand(3, 80, 96) * 2 - 1)
        Path(f"pictures/{number}.label").write_text("cat\n" if number % 2 else "dog\n")
