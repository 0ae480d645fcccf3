"""A full disk: every command says so in one line, exits with 1, and leaves what was there as it was.

A limit on the size of files is the full disk here (EFBIG, by the system itself), and where small files would fit an
fsync or a write that says ENOSPC.
"""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tessera.configs.files import DiskFull, write_atomic, write_safetensors
from tessera.tokenize.data.codes_file import CodesItem, write_codes
from tessera.tokenize.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "samples" / "digits" / "test.safetensors"


def full(*ignored):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("content", ["bytes", "tensors"])
def test_a_file_that_does_not_fit_is_named_and_the_old_one_stays(tmp_path, content):
    """safetensors has an error of its own for it."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        said = ""
        try:
            if content == "bytes":
                write_atomic(path, bytes(5000))
            else:
                write_safetensors(path, {"a": torch.zeros(5000)})
        except DiskFull as error:
            said = str(error)
        finally:
            (tmp_path / "said").write_text(said)
            os._exit(0)
    os.waitpid(child, 0)
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"{path}: no disk space to write this file (File too large), ") and "bytes are free" in said
    assert path.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "said"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod", "mkdir"])
def test_no_room_at_any_call(tmp_path, monkeypatch, call):
    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFull, match="no disk space to write this file"):
        write_atomic(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


TO = ("--tokenizer", "speech", "-o")
COMMANDS = {
    "generate": ["generate", "digits", "--label", "7", "-o", "{folder}/out"],
    "encode": ["encode", f"{ROOT}/samples/speech/test/00000.flac", *TO, "{folder}/a.safetensors"],
    "decode": ["decode", "{folder}/in.safetensors", *TO, "{folder}/out"],
    "coarse": ["coarse", "digits", "--clusters", "4", "-o", "{folder}/out"],
    "shards": [
        "shards", f"{ROOT}/configs/digits/shards.yaml", "--set", f"corpus.path={DIGITS}", "--set", "tokenizer=digits",
        "--set", "out={folder}/out", "--set", "max_items=10",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "verb", [verb if verb == "shards" else pytest.param(verb, marks=pytest.mark.slow) for verb in COMMANDS]
)
def test_commands_say_it_in_one_line(tmp_path, verb):
    if verb == "decode":
        spec = load_tokenizer(ROOT / "bundled" / "speech" / "tokenizer").spec
        codes = torch.zeros(spec.num_codebooks, 20, dtype=torch.long)
        write_codes(tmp_path / "in.safetensors", spec, [CodesItem("a", codes)])
    words = [word.format(folder=tmp_path) for word in COMMANDS[verb]]
    script = (
        "import resource, sys; from tessera.cli.app import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40)); main({words!r})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    lines = [line for line in found.stderr.splitlines() if line.startswith("tessera:")]
    assert found.returncode == 1, found.stderr
    assert len(lines) == 1 and "no disk space to write this file" in lines[0] and "Traceback" not in found.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
