"""Several processes: the same run as one, stopped together, and DeepSpeed's own launcher."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tessera.train.common.metrics import read_metrics
from tessera.train.distributed.launch import launch

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


DEPTH = {"kind": "depth", "width": 8, "layers": 2, "heads": 2, "first": "backbone"}
SHARED = {**DEPTH, "input": "backbone", "projection": "affine", "qk_norm": True, "positions": {"kind": "rope"}}


def write_config(folder: Path, data: Path, head: dict | None = None, **train) -> Path:
    settings = {
        "name": "tiny",
        "device": "cpu",
        "data": {"shards": str(data / "train"), "test": str(data / "test")},
        "tokenizer": str(data / "tokenizer"),
        "lm": {
            "width": 16,
            "layers": 1,
            "heads": 2,
            "dropout": 0.1,
            "variable_length": True,
            "conditions": [{"kind": "label", "dropout": 0.3}],
            "head": head or {"kind": "parallel"},
        },
        "train": {
            "steps": 6,
            "batch": 8,
            "micro_batch": 2,
            "lr": 0.01,
            "warmup_steps": 2,
            "log_every": 1,
            "ema": 0.9,
            **train,
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def tessera(*arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    found = subprocess.run(
        [sys.executable, "-m", "tessera", *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not check or found.returncode == 0, found.stderr
    return found


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder)]


@pytest.mark.slow
def test_two_processes_equal_one(tiny_data, tmp_path):
    config = write_config(tmp_path, tiny_data)
    tessera("train", config, "--out", tmp_path / "one")
    tessera("train", config, "--out", tmp_path / "two", "--nproc", 2)
    # the same micro-batches with the same dropout, summed in another order
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert (tmp_path / "two" / "model" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "head"), [(0, None), (1, None), (2, None), (3, None), (3, DEPTH), (1, SHARED), (3, SHARED)]
)
def test_two_deepspeed_processes_equal_one_of_torch(tiny_data, tmp_path, stage, head):
    config = write_config(tmp_path, tiny_data, head, save_every=3)
    tessera("train", config, "--out", tmp_path / "one")
    deepspeed = ["--set", f"engine={{kind: deepspeed, zero_stage: {stage}, persistence_elements: 0}}"]
    tessera("train", config, *deepspeed, "--out", tmp_path / "two", "--nproc", 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def from_the_middle(whole: Path, copy: Path) -> Path:
    """A run of six steps as it was after three."""
    shutil.copytree(whole, copy)
    for path in (copy / "steps" / "step-00000006", copy / "model"):
        shutil.rmtree(path)
    (copy / "FINISHED").unlink()
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", 0, 1, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(tiny_data, tmp_path, engine, before, after):
    """With the micro-batches it was started with, dropout and all: the largest difference is of rounding."""
    kind = "{kind: torch}"
    if engine != "torch":
        kind = f"{{kind: deepspeed, zero_stage: {engine}, persistence_elements: 0}}"
    config = write_config(tmp_path, tiny_data, save_every=3, micro_batch=None)
    run = ["train", config, "--set", f"engine={kind}"]
    tessera(*run, "--out", tmp_path / "whole", "--nproc", before)
    other = from_the_middle(tmp_path / "whole", tmp_path / "other")
    said = tessera(*run, "--out", other, "--nproc", after, "--resume").stderr
    assert f"saved by {before} processes, resuming with {after}: the run is the same up to rounding" in said
    assert losses(other) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    wanted, found = (
        load_file(folder / "steps" / "step-00000006" / "weights.safetensors") for folder in (tmp_path / "whole", other)
    )
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_after_saving(tiny_data, tmp_path):
    config = write_config(tmp_path, tiny_data, steps=100_000)
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera", "train", str(config), "--out", str(out), "--nproc", "2"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "metrics.jsonl").exists() or not read_metrics(out):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--nproc 2 --resume" in said
    assert len(list(out.glob("steps/step-*/COMMITTED"))) == 1


@pytest.mark.slow
def test_a_folder_of_the_same_name_is_not_taken_for_the_package(tmp_path, monkeypatch):
    planted = tmp_path / "planted"
    package = tmp_path / "tessera"
    package.mkdir()
    for name in ("__init__", "__main__"):
        (package / f"{name}.py").write_text(f"open({str(planted)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert launch(["--version"], 2) == 0
    assert not planted.exists()


@pytest.mark.slow
def test_deepspeeds_own_launcher(tiny_data, tmp_path):
    config = write_config(tmp_path, tiny_data)
    out = tmp_path / "run"
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [
        launcher,
        "--num_gpus",
        2,
        "--no_local_rank",
        "--master_port",
        free_port(),
        "--module",
        "tessera",
        "train",
    ]
    options = [config, "--set", "engine.kind=deepspeed", "--out", out]
    environment = {**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    found = subprocess.run(
        [str(part) for part in (*command, *options)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert json.loads((out / "FINISHED").read_text())["step"] == 6
    assert json.loads(next(out.glob("steps/*/run.json")).read_text())["processes"] == 2


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_exit_codes_and_one_line_errors(tiny_data, tmp_path):
    config = write_config(tmp_path, tiny_data)
    for arguments, said in (
        (["--set", "train.stepz=1"], "train.stepz: unknown key; did you mean 'steps'?"),
        (
            ["--set", "train.batch=3", "--set", "train.micro_batch=null", "--nproc", "2"],
            "3 items cannot be divided among 2 processes",
        ),
        (["--set", "tokenizer=nowhere"], "nowhere: no tokenizer here"),
    ):
        found = tessera("train", config, *arguments, "--out", tmp_path / "out", check=False)
        assert found.returncode == 2, found.stderr
        assert said in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()


def in_two_processes(folder: Path, *command: str) -> None:
    """Run a script of this folder in two processes that meet in `folder`."""
    processes = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
        meeting = {"TESSERA_RENDEZVOUS": (folder / "rendezvous").as_uri()}
        script = str(Path(__file__).with_name(command[0]))
        processes.append(
            subprocess.Popen(
                [sys.executable, script, *command[1:]],
                env={**ENVIRONMENT, **own, **meeting},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said


@pytest.mark.slow
def test_what_deepspeed_divides_is_collected_whole(tmp_path):
    in_two_processes(tmp_path, "shared_state.py", str(tmp_path))
    assert len(list(tmp_path.glob("*/engine.json"))) == 16


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["torch", "0", "1", "2", "3"])
def test_a_bad_gradient_in_one_process_is_skipped_in_all(tmp_path, kind, dtype):
    in_two_processes(tmp_path, "bad_rank.py", kind, dtype)


def test_one_of_several_processes_skips_the_interpreters_clean_up():
    """It has aborted finished runs; output and exit code are those of the command."""
    program = "import atexit; atexit.register(print, 'late'); from tessera.cli.app import main; main(['{}'])"
    for argument, code in (("--version", 0), ("--nonsense", 2)):
        for rank in ({}, {"LOCAL_RANK": "0"}):
            found = subprocess.run(
                [sys.executable, "-c", program.format(argument)],
                env={**ENVIRONMENT, **rank},
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert found.returncode == code and ("late" in found.stdout) == (not rank)
            assert (found.stdout or found.stderr).strip()
