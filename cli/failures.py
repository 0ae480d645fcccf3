"""Errors turned into one line and an exit code: what a user can mend, what a machine lacks; the rest is our mistake."""

from __future__ import annotations

import errno
import re
import sys

import typer

from ..tokenize.memory import is_out_of_memory
from ..tokenize.printable import one_line

FAILED, MISUSED = 1, 2
MISUSE = (ValueError, ImportError, OverflowError, FileNotFoundError, FileExistsError, IsADirectoryError)
MISUSE += (NotADirectoryError, PermissionError)
_MISUSED_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EROFS, errno.EXDEV}
_ASKED = re.compile(r"tried to allocate (\d+) bytes")

# Newer typer carries its own copy of click, older ones use the package: either way the base of typer.BadParameter.
CommandLineError: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if issubclass(base, Exception) and base.__name__ == "ClickException"
)


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit code and the line to print for an error of a known kind; None for what is a mistake of ours."""
    if isinstance(error, CommandLineError):
        text = error.format_message()  # type: ignore[attr-defined]
        return MISUSED, text if type(error).__name__ == "NoArgsIsHelpError" else _line(text)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, _line("stopped")
    if isinstance(error, BrokenPipeError):
        return FAILED, _line("what read the output has gone")
    if is_out_of_memory(error):
        asked = _ASKED.search(str(error))
        reason = f"{int(asked[1]) / 1e9:.1f} GB were asked for at once" if asked else str(error)
        return FAILED, _line(f"not enough memory{': ' if reason else ''}{reason}")
    if isinstance(error, RecursionError):
        return MISUSED, _line("the input is nested too deep")
    if isinstance(error, OSError):
        misused = isinstance(error, MISUSE) or error.errno in _MISUSED_PATHS
        return MISUSED if misused else FAILED, _line(_of_system(error))
    if isinstance(error, MISUSE):
        return MISUSED, _line(error)
    return None


def _line(text: object) -> str:
    return f"tessera: {one_line(text)}"


def _of_system(error: OSError) -> str:
    """A system's error without its number."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror.lower()


def print_failure(error: BaseException) -> int:
    """Print the line of an error on stderr and return the exit code; raises the error where it is a mistake of ours."""
    found = explain(error)
    if found is None:
        raise error
    code, text = found
    print(text, file=sys.stderr)
    return code
