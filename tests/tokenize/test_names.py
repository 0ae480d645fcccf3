"""Names that become files and folders stay inside their folder."""

import random
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from tessera.configs.names import FolderName, check_file_name, output_stems

ESCAPING = [
    *("", ".", "..", "../x", "/etc/x", "a/b", "a\\b", "..\\x", "C:\\x", "a\nb", "a\x00", "a\x1b[31m", "x\n", "\udcff"),
    *("x" * 300, "ü" * 150, "\u202ex", "a/", "./a", "~/a/b"),
]


@pytest.mark.parametrize("name", ESCAPING)
def test_names_that_leave_their_folder_are_refused(name):
    with pytest.raises(ValueError, match="^here: ") as caught:
        check_file_name(name, "here")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200
    with pytest.raises(ValidationError):
        TypeAdapter(FolderName).validate_python(name)


@pytest.mark.parametrize("name", ["con", "NUL", "com1.x", "-x", ".x", "x.", "a b", "日", "x" * 101])
def test_folder_names_work_on_every_system(name):
    with pytest.raises(ValidationError):
        TypeAdapter(FolderName).validate_python(name)


@pytest.mark.parametrize("name", ["a", "digits-ctf", "musicgen_1.5", "7", "console", "x" * 100])
def test_usual_names(name):
    assert TypeAdapter(FolderName).validate_python(name) == name == check_file_name(name, "here")


def test_output_stems_are_distinct_names_inside_a_folder():
    draw = random.Random(0)
    names = [
        *ESCAPING,
        "CON",
        "con.wav",
        "a.wav",
        "A.flac",
        "b/a.wav",
        "a-1",
        ".hidden",
        "日本語.wav",
        "日" * 300 + ".wav",
    ]
    names += ["".join(draw.choices("aA.-/\\ \x00ü日\ud800", k=draw.randrange(8))) for _ in range(2000)]
    stems = output_stems(names)
    assert len(stems) == len({stem.lower() for stem in stems}) == len(names)
    for stem in stems:
        check_file_name(f"{stem}.flac", "here")
        assert Path("out", stem).name == stem and not stem.startswith(".") and stem.strip() == stem
        assert stem.split(".")[0].lower() not in ("con", "nul")
    assert output_stems(["x/a.wav", "a.flac", "a"]) == ["a", "a-1", "a-2"]


def test_many_equal_names_take_linear_time():
    started = time.process_time()
    assert output_stems(["x"] * 30_000)[-1] == "x-29999"
    assert time.process_time() - started < 5  # quadratic counting took minutes
