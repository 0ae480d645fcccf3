"""The README: its size, the map of folders, and the commands that generate."""

import re
import shlex
import subprocess
import sys

import pytest
from pages import ROOT, blocks, read

README = read(ROOT / "README.md")
BUNDLED = all((ROOT / "bundled" / name / "config.json").is_file() for name in ("voice", "emoji", "digits"))


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_it_is_short():
    assert len(README.splitlines()) < 120


def test_map_of_folders_is_complete():
    listed = set(re.findall(r"`([a-z]+)/`", section("What is where")))
    hidden = {"build", "dist", "out", "runs", "node_modules"}
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"} - hidden
    assert listed == {name for name in found if not name.endswith(".egg-info")}


@pytest.mark.skipif(not BUNDLED, reason="the bundled models are not in this checkout")
def test_generation_commands_run(tmp_path, monkeypatch):
    from tessera.cli.app import run

    monkeypatch.chdir(tmp_path)
    block = next(block.text for block in blocks(section("Command line")))
    for line in block.strip().splitlines():
        arguments = shlex.split(line)[1:]
        if "-o" not in arguments:
            continue
        assert run(arguments) == 0, line
        written = tmp_path / arguments[arguments.index("-o") + 1]
        assert any(written.iterdir()) if written.is_dir() else written.stat().st_size > 0


@pytest.mark.slow
def test_doctor_runs(tmp_path):
    done = subprocess.run([sys.executable, "-m", "tessera", "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
