"""The README does not lie: its commands and options exist, its links lead somewhere, and what is cheap is run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUNDLED = all((ROOT / "bundled" / name / "config.json").is_file() for name in ("digits", "speech"))


def blocks(language: str) -> list[str]:
    """The code blocks of the README marked with a language; "" for those without."""
    fences = re.split(r"^```(.*)\n", README, flags=re.M)  # text, mark, block, "", text, mark, ...
    return [block for mark, block in zip(fences[1::4], fences[2::4], strict=True) if mark == language]


def commands() -> list[str]:
    """Lines of the unmarked code blocks, comments taken off."""
    lines = "".join(blocks("")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def tessera_commands() -> list[list[str]]:
    return [shlex.split(line)[1:] for line in commands() if line.startswith("tessera ")]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_commands_are_of_known_kinds():
    assert {line.split()[0] for line in commands()} <= {"tessera", "make"}
    assert len(tessera_commands()) >= 10 and len(blocks("python")) >= 2


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    mentioned = {shlex.split(line)[1] for line in commands() if line.startswith("make ")}
    mentioned |= set(re.findall(r"`make ([a-z-]+)", README))
    for target in mentioned:
        assert re.search(rf"^{target}:", makefile, flags=re.M), f"make {target}"


@pytest.mark.parametrize("arguments", tessera_commands(), ids=" ".join)
def test_tessera_commands_and_options_exist(arguments):
    from tessera.cli import app

    command, rest = app.commands(), list(arguments)
    while hasattr(command, "commands"):
        verb = rest.pop(0)
        assert verb in command.commands, f"tessera {' '.join(arguments)}: no command '{verb}'"
        command = command.commands[verb]
    known = {name for parameter in command.params for name in parameter.opts}
    options = [word for word in rest if re.fullmatch(r"-[a-z]|--[a-z-]+", word)]
    assert set(options) <= known, f"tessera {' '.join(arguments)}: known options are {sorted(known)}"


def test_configs_exist():
    for word in [word for arguments in tessera_commands() for word in arguments]:
        if word.startswith("configs/"):
            assert (ROOT / word).exists(), word
    for folder in re.findall(r"`(configs/[a-z-]+)`", README):
        assert (ROOT / folder).is_dir(), folder


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_map_of_folders_is_whole():
    listed = set(re.findall(r"`([a-z]+)/`", section("What is where")))
    hidden = {"build", "dist", "out", "runs", "node_modules"}
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"} - hidden
    assert listed == {name for name in found if not name.endswith(".egg-info")}


@pytest.mark.slow
@pytest.mark.skipif(not BUNDLED, reason="the bundled models are not in this checkout")
@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1][:40])
def test_python_blocks_run(code, tmp_path):
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=300)


@pytest.mark.skipif(not BUNDLED, reason="the bundled models are not in this checkout")
def test_generation_commands_run(tmp_path, monkeypatch):
    from tessera.cli.app import run

    monkeypatch.chdir(tmp_path)
    for line in next(block for block in blocks("") if "tessera tts" in block).strip().splitlines():
        arguments = shlex.split(line)[1:]
        assert run(arguments) == 0, line
        written = tmp_path / arguments[arguments.index("-o") + 1]
        assert any(written.iterdir()) if written.is_dir() else written.stat().st_size > 0


@pytest.mark.slow
def test_doctor_runs(tmp_path):
    done = subprocess.run([sys.executable, "-m", "tessera", "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["speech", "pictures"])
def test_own_data_commands_run(kind, tmp_path, monkeypatch):
    """A folder of one's own media, by the README alone, with few steps and small networks."""
    from tessera.cli.app import run

    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "configs", tmp_path / "configs")
    (make_recordings if kind == "speech" else make_pictures)()
    block = next(text for text in blocks("") if f"configs/own-{kind}/" in text)
    for line in block.strip().splitlines():
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
        tone = 0.3 * torch.sin(torch.arange(8000) * (0.05 + 0.01 * number))[None]
        write_audio(Path("recordings") / f"{number}.wav", tone, 16000)
        Path(f"recordings/{number}.txt").write_text(f"tone number {number} of the recordings\n")


def make_pictures() -> None:
    """Twenty pictures of two labels, larger than the tokenizer's."""
    import torch

    from tessera.tokenize.data.media import write_image

    os.mkdir("pictures")
    for number in range(20):
        write_image(Path("pictures") / f"{number}.png", torch.rand(3, 80, 96) * 2 - 1)
        Path(f"pictures/{number}.label").write_text("cat\n" if number % 2 else "dog\n")
