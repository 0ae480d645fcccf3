"""Errors become one line and an exit code; mistakes of ours keep their traceback."""

import errno

import pytest
import torch
import typer

from tessera.cli.failures import explain, print_failure


@pytest.mark.parametrize(
    "error, code, text",
    [
        (ValueError("a\n b\x1b[31m"), 2, "tessera: a b\\x1b[31m"),
        (OverflowError("int too large"), 2, "tessera: int too large"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "tessera: 'utf-8' codec can't"),
        (
            UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates"),
            2,
            r"tessera: 'a\udcff' is not valid UTF-8",
        ),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "tessera: x: no such file or directory"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 9000), 2, "file name too long"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), 2, "tessera: x: too many levels of"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "tessera: x: no space left on device"),
        (OSError("plain"), 1, "tessera: plain"),
        (BrokenPipeError(32, "Broken pipe"), 1, "tessera: the reader of the output has exited"),
        (MemoryError(), 1, "tessera: not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), 2, "tessera: the input is nested too deep"),
        (KeyboardInterrupt(), 130, "tessera: stopped"),
        (typer.BadParameter("--n takes\na number"), 2, "tessera: Invalid value: --n takes a number"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "tessera: not enough memory: CUDA"),
    ],
)
def test_known_errors(error, code, text):
    found = explain(error)
    assert found is not None and found[0] == code and text in found[1], found
    assert found[1].isprintable() and len(found[1]) < 2100


def test_torch_says_how_much_it_wanted():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert explain(caught.value) == (1, "tessera: not enough memory: 4000000.0 GB were requested at once")


@pytest.mark.parametrize("error", [TypeError("x"), RuntimeError("x"), AssertionError("x"), KeyError("x"), IndexError()])
def test_mistakes_of_ours_keep_their_traceback(error):
    with pytest.raises(type(error)):
        print_failure(error)
