"""Every refusal is one line and exit code 2, without a traceback, within 2 s of CPU time and 500 MB."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hostile_inputs import CASES
from tiny_models import save_tiny_models

from tessera.cli.app import run
from tessera.configs.files import write_safetensors
from tessera.generate.loading import load
from tessera.tokenize.data.corpus import ArraysCorpus
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig

SECONDS, MEGABYTES = 2.0, 500
IN_PROCESSES = ("yaml: many keys", "option: --frames 10^9")
"""Cases that the quick tests run in processes of their own."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    save_tiny_models(folder / "models")
    pictures = {"images": torch.zeros(4, 4, 6, dtype=torch.uint8), "labels": torch.tensor([0, 1, 0, 1])}
    write_safetensors(folder / "pictures.safetensors", pictures)
    corpus = ArraysCorpus(path=str(folder / "pictures.safetensors"))
    config = ShardsConfig(corpus=corpus, tokenizer="-", out=str(folder / "shards"))
    build_shards(config, load(folder / "models" / "shapes").tokenizer, False)
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    for path in prepared.iterdir():
        os.symlink(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_line(stderr: str, code: int) -> None:
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert code == 2, stderr[-2000:]
    assert len(lines) == 1 and lines[0].startswith("tessera: "), stderr[-2000:]
    assert lines[0].isprintable() and len(lines[0]) < 2100


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", CASES)
def test_refused(folder, name, capsys):
    arguments = [str(argument) for argument in CASES[name](folder)]
    before = files_of(folder)
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    code = run(arguments)
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) >> 10
    printed = capsys.readouterr()
    check_line(printed.err, code)
    assert printed.out == ""
    assert seconds < 2 * SECONDS and grown < MEGABYTES, f"{seconds:.1f} s, {grown} MB"
    # Nothing is made but folders that may hold what comes.
    made = files_of(folder) - before
    assert made <= {"run", "out", "tokenizer", "new-shards", "c", "converted"}, made


def refuse_in_a_process(folder: Path, name: str) -> None:
    """With limits of the system; what importing torch takes is allowed besides."""
    arguments = [str(argument) for argument in CASES[name](folder)]

    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    process = subprocess.Popen(
        [sys.executable, "-m", "tessera", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )
    assert process.stderr is not None
    stderr = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    check_line(stderr, process.returncode)
    seconds, megabytes = used.ru_utime + used.ru_stime, used.ru_maxrss >> 10
    print(f"{name}: {seconds:.1f} s of CPU, {megabytes} MB")
    assert megabytes < MEGABYTES + 500 and seconds < SECONDS + 8


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", IN_PROCESSES)
def test_refused_in_a_process(folder, name):
    refuse_in_a_process(folder, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in IN_PROCESSES])
def test_each_refused_in_a_process(folder, name):
    refuse_in_a_process(folder, name)
