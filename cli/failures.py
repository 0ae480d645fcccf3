"""Maps errors to one line and an exit code: user errors and missing resources; all other errors are bugs."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable
from typing import Any

import typer

from ..configs.memory import is_out_of_memory
from ..configs.printable import one_line, printable
from .error_messages import usage_text

FAILED, MISUSED = 1, 2
MISUSE = (ValueError, ImportError, OverflowError, FileNotFoundError, FileExistsError, IsADirectoryError)
MISUSE += (NotADirectoryError, PermissionError)
_MISUSED_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EROFS, errno.EXDEV}
ERRNO = r"\[Errno -?\d+\] "
SYSTEM_WORDS = {
    errno.EEXIST: "exists already and is not a folder",
    errno.EISDIR: "is a folder, expected a file",
    errno.ENOTDIR: "a file exists where a folder is needed",
}
_ASKED = re.compile(r"tried to allocate (\d+) bytes")

# Newer versions of typer bundle click, older ones import it: take the base class of typer.BadParameter in both cases.
CommandLineError: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if issubclass(base, Exception) and base.__name__ == "ClickException"
)


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message line for an error of a known kind; None for a bug."""
    if isinstance(error, CommandLineError):
        text = usage_text(error)
        return MISUSED, text if type(error).__name__ == "NoArgsIsHelpError" else _line(text)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, _line("stopped")
    if isinstance(error, BrokenPipeError):
        return FAILED, _line("the reader of the output has exited")
    if is_out_of_memory(error):
        asked = _ASKED.search(str(error))
        reason = f"{int(asked[1]) / 1e9:.1f} GB were requested at once" if asked else str(error)
        return FAILED, _line(f"not enough memory{': ' if reason else ''}{reason}")
    if isinstance(error, RecursionError):
        return MISUSED, _line("the input is nested too deep")
    if isinstance(error, OSError):
        misused = isinstance(error, MISUSE) or error.errno in _MISUSED_PATHS
        return MISUSED if misused else FAILED, _line(_of_system(error))
    if isinstance(error, UnicodeEncodeError):
        found = printable(error.object, 200)
        return MISUSED, _line(f"'{found}' is not valid UTF-8; rename it, or choose another path")
    if isinstance(error, MISUSE):
        return MISUSED, _line(_of_pydantic(error) or error)
    return None


def _line(text: object) -> str:
    return f"tessera: {re.sub(ERRNO, '', one_line(text))}"


def _of_system(error: OSError) -> str:
    """A system error without its number."""
    if error.strerror is None:
        return str(error)
    what = SYSTEM_WORDS.get(error.errno or 0) or error.strerror.lower()
    return f"{error.filename}: {what}" if error.filename else what


def _of_pydantic(error: Any) -> str:
    """The first error of a pydantic ValidationError, whose own message has many lines; "" for other errors."""
    if type(error).__name__ != "ValidationError" or not hasattr(error, "errors"):
        return ""
    first = error.errors()[0]
    return ": ".join([*[".".join(map(str, first["loc"]))] * bool(first["loc"]), first["msg"]])


def print_failure(error: BaseException, spell: Callable[[str], str] = str) -> int:
    """Print the line of an error on stderr and return the exit code; re-raises the error if it is a bug.

    `spell`: converts library wording to command-line wording.
    """
    found = explain(error)
    if found is None:
        raise error
    code, text = found
    print(spell(text), file=sys.stderr)
    return code
