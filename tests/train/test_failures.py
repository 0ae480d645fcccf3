"""What goes wrong in one process of several ends all of them, with a reason and an exit code, and nothing is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_launch import ENVIRONMENT, write_config

ENGINES = {
    "torch": "{kind: torch}",
    "zero 1": "{kind: deepspeed, zero_stage: 1}",
    "zero 3": "{kind: deepspeed, zero_stage: 3}",
}
CASES = [
    ("0 disk", "torch", 1, ["no disk space for a checkpoint", "bytes are free; earlier checkpoints are intact"]),
    ("0 disk", "zero 1", 1, ["no disk space for a checkpoint", "bytes are free; earlier checkpoints are intact"]),
    ("0 disk", "zero 3", 1, ["no disk space for a checkpoint", "bytes are free; earlier checkpoints are intact"]),
    ("1 shard", "torch", 2, ["00000.safetensors: damaged"]),
    ("0 shard", "torch", 2, ["00000.safetensors: damaged"]),
    ("1 shard", "zero 1", 2, ["00000.safetensors: damaged"]),
    ("1 kill", "torch", 137, ["process 1 was ended by SIGKILL"]),
    ("1 interrupt", "torch", 130, ["process 0 lost the connection to another process"]),
    ("1 evaluate", "torch", 1, ["no memory for an evaluation"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fail", "engine", "code", "said"), CASES, ids=[f"{case[0]}, {case[1]}" for case in CASES])
def test_a_failure_in_one_process_ends_all(tiny_data, tmp_path, fail, engine, code, said):
    config = write_config(tmp_path, tiny_data, save_every=4, eval_every=3)
    shutil.copy(Path(__file__).with_name("failing_rank.py"), tmp_path / "sitecustomize.py")
    run = ["train", config, "--set", f"engine={ENGINES[engine]}", "--nproc", 2, "--out", tmp_path / "run"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tessera", *map(str, run)]
    found = subprocess.run(
        command, env={**ENVIRONMENT, "PYTHONPATH": path, "FAIL": fail}, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == code, found.stderr
    for words in said:
        assert words in found.stderr
    assert "Traceback" not in found.stderr or "evaluate" in fail  # a MemoryError is nobody's misuse
    if "disk" in fail:
        assert found.stderr.count("no disk space for a checkpoint") == 2  # every process says it
        assert not list((tmp_path / "run" / "steps").iterdir())
    assert not list((tmp_path / "run").rglob("*.part"))
