"""Output that cannot be written: refused before the work, in one line that says what is in the way and what to do."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_models

from tessera.cli.app import run
from tessera.cli.failures import explain
from tessera.configs.files import write_atomic, write_safetensors
from tessera.configs.output_place import prepare_file, prepare_folder

SOUND = Path(__file__).parents[2] / "samples" / "speech" / "test" / "00000.flac"
VERBS = {
    "generate": (["generate", "models/shapes", "--label", "star", "-o"], ".png"),
    "generate into a folder": (["generate", "models/shapes", "--label", "star", "-o"], ""),
    "frames": (["image", "star", "--model", "models/shapes", "-o", "x.png", "--frames"], ""),
    "stream": (["tts", "a", "--model", "models/tones", "--stream", "-o"], ".wav"),
    "encode": (["encode", SOUND, "--tokenizer", "models/shapes", "-o"], ".safetensors"),
    "coarse": (["coarse", "models/shapes", "--clusters", "2", "-o"], ""),
    "configs": (["configs", "digits/lm", "--copy"], ""),
    "convert": (["convert", "models/shapes"], ""),
    "page": (["tokenizer", "eval", "models/shapes", "--page"], ".html"),
}
PLACES = {
    "below a file": ("file/x{}", "'file' is not a folder; choose another path"),
    "far below a file": ("file/x/y/z{}", "'file' is not a folder; choose another path"),
    "below a device": ("/dev/null/x{}", "'/dev/null' is not a folder; choose another path"),
    "links in a circle": ("circle/x/x{}", "symbolic links form a loop; choose another path"),
    "a long name": ("x" * 300 + "{}", "the name is too long"),
    "a long folder": ("x" * 300 + "/x{}", "the name is too long"),
    "no files there": ("/proc/self/x{}", "in the folder '/proc/self'; choose another path"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    save_tiny_models(folder / "models")
    return folder / "models"


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(models, "models")
    os.symlink("circle", "circle")
    Path("file").write_text("")
    return tmp_path


def refused(capsys, arguments):
    code = run([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert code == 2 and printed.out == "" and len(lines) == 1, printed.err
    assert lines[0].startswith("tessera: ") and lines[0].isprintable()
    assert "rrno" not in lines[0] and "os error" not in lines[0] and ".part" not in lines[0], lines[0]
    return lines[0]


@pytest.mark.sample(7)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_is_in_the_way(folder, capsys, verb, place):
    words, suffix = VERBS[verb]
    path, said = PLACES[place]
    before = set(folder.rglob("*"))
    assert said in refused(capsys, [*words, path.format(suffix)])
    assert set(folder.rglob("*")) == before


def test_a_folder_of_that_name(folder, capsys):
    Path("x.safetensors").mkdir()
    line = refused(capsys, [*VERBS["encode"][0], "x.safetensors"])
    assert line == "tessera: x.safetensors: cannot be written: a folder of that name exists; name a file"


@pytest.mark.parametrize("prepare", [prepare_file, prepare_folder])
@pytest.mark.parametrize(
    "number, said",
    [
        (errno.EACCES, "no permission to write in the folder '{}'; choose another path"),
        (errno.EROFS, "the folder '{}' is read-only; choose another path"),
        (errno.EIO, "input/output error; choose another path"),
    ],
)
def test_what_the_system_refuses(tmp_path, monkeypatch, prepare, number, said):
    def refuse(dir):
        raise OSError(number, os.strerror(number), f"{dir}/tmpabc")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    path = tmp_path / "x"
    with pytest.raises(OSError) as caught:
        prepare(path)
    code, line = explain(caught.value)
    assert line == f"tessera: {path}: cannot be written: " + said.format(path if path.exists() else tmp_path)
    assert code == (1 if number == errno.EIO else 2)


@pytest.mark.parametrize(
    "write", [lambda path: write_atomic(path, b"x"), lambda path: write_safetensors(path, {"a": torch.zeros(1)})]
)
def test_a_writer_names_the_file_and_not_its_temporary_one(tmp_path, write):
    """safetensors has an error of its own for what the system refuses."""
    with pytest.raises(OSError, match="cannot be written: the name is too long") as caught:
        write(tmp_path / ("x" * 300))
    assert str(caught.value).startswith(f"{tmp_path}/xxx") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["generate", "coarse"])
def test_line_ends_and_escape_sequences_of_names_are_shown(folder, capsys, verb):
    words, suffix = VERBS[verb]
    assert run([*words, f"a\n\x1b[31mb{suffix}"]) == 0
    said = capsys.readouterr().err
    assert r"a\n\x1b[31mb" in said and "\x1b" not in said and "\nb" not in said
