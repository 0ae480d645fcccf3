"""The `tessera` command: one file a verb, errors turned into one line and an exit code here.

Exit codes: 0 done, 1 failed, 2 misused (one line that says what was asked, what was found, what to do).
"""

from __future__ import annotations

import sys

import typer

from . import VERBS

# Newer typer carries its own copy of click, older ones use the package: either way the base of typer.BadParameter.
_CommandLineError: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if issubclass(base, Exception) and base.__name__ == "ClickException"
)
_MISUSE = (
    ValueError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

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
    except _CommandLineError as error:
        text = error.format_message()  # type: ignore[attr-defined]
        print(text if "\n" in text else f"tessera: {text}", file=sys.stderr)  # several lines: help, no arguments given
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("tessera: stopped", file=sys.stderr)
        return 130
    except _MISUSE as error:
        print(f"tessera: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        named = f"{error.filename}: " if error.filename is not None else ""
        print(f"tessera: {' '.join((named + (error.strerror or str(error))).split())}", file=sys.stderr)
        return 1
