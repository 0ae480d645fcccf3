"""The `tessera` command. Each verb has its own file; errors are converted to one line and an exit code here.

Exit codes: 0 done, 1 failed, 2 misused (one line that says what was asked, what was found, what to do).
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from typing import Annotated, Any

import typer
from typer.main import get_command

from .. import __version__
from . import VERBS
from .error_messages import options_of, with_flags
from .failures import print_failure

app = typer.Typer(
    name="tessera",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _register in VERBS:
    _register(app)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"tessera {__version__}, torch {_installed('torch')}, python {platform.python_version()}")
        raise typer.Exit


def _installed(package: str) -> str:
    """The version of a package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@app.callback()
def _tessera(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    """Autoregressive generation over multi-codebook tokens.

    First steps: tessera image "a red apple" -o apple.png; tessera tts "Hello world." -o hello.wav; tessera configs;
    tessera doctor
    """


@functools.cache
def commands() -> Any:
    """The click group of all verbs. Typer inspects every signature to build it, so it is built once."""
    return get_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    One of several training processes exits without the interpreter's clean-up: threads of the communication libraries
    may still run, and tearing them down has aborted a process (SIGABRT) whose run was finished.
    """
    code = run(arguments)
    if "LOCAL_RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 misused."""
    try:
        return int(commands()(args=arguments, prog_name="tessera", standalone_mode=False) or 0)
    except typer.Exit as error:
        return error.exit_code
    except (Exception, KeyboardInterrupt) as error:
        return print_failure(error, lambda text: with_flags(text, options_of(arguments, commands())))
