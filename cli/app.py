"""The `tessera` command: one file a verb, errors turned into one line and an exit code here.

Exit codes: 0 done, 1 failed, 2 misused (one line that says what was asked, what was found, what to do).
"""

from __future__ import annotations

import sys

import typer

from . import VERBS
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


@app.callback()
def _tessera() -> None:
    """Autoregressive generation over multi-codebook tokens."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (see the head of this file)."""
    try:
        return int(app(args=arguments, standalone_mode=False) or 0)
    except typer.Exit as error:
        return error.exit_code
    except (Exception, KeyboardInterrupt) as error:
        return print_failure(error)
