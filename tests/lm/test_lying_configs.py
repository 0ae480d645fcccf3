"""A config that lies, whatever field of it, is refused in one line, within 2 seconds and 500 MB."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.lm.clustering.clustering import cluster_codes
from tessera.tokenize.bundled import BUNDLED
from tessera.tokenize.tokenizer import load_tokenizer

SCRIPT = Path(__file__).with_name("lying_configs.py")
REFUSALS = {"ValueError", "ConfigError", "WeightsError", "DamagedFile", "BudgetError", "FileNotFoundError"}
CASES = [
    ("model", "digits", ".", "config.json"),
    ("model", "speech", ".", "config.json"),
    ("tokenizer", "digits", "tokenizer", "config.json"),
    ("tokenizer", "speech", "tokenizer", "config.json"),
    ("coder", "digits", "coder", "coder.json"),
    ("coder", "speech", "coder", "coder.json"),
    ("clusters", "digits", "clusters", "config.json"),
]
IDS = [f"{kind}-{name}" for kind, name, *_ in CASES]


def check(tmp_path: Path, case: tuple[str, str, str, str], every: int) -> None:
    kind, name, part, config = case
    shutil.copytree(BUNDLED / name, tmp_path / name)
    if kind == "clusters":
        cluster_codes(load_tokenizer(BUNDLED / name / "tokenizer"), 8).save(tmp_path / name / part)
    command = [sys.executable, str(SCRIPT), kind, str(tmp_path / name / part), config, str(every)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found
    for one in found:
        assert one["seconds"] < 2 and one["megabytes"] < 500, one
        assert one["line"] == "loaded" or one["line"].split(":")[0] in REFUSALS, one
        assert "\n" not in one["line"], one
    assert any(one["line"] != "loaded" for one in found)


@pytest.mark.slow
def test_some_lies(tmp_path):
    check(tmp_path, CASES[0], 41)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_lies_in_every_field(tmp_path, case):
    check(tmp_path, case, 1)
