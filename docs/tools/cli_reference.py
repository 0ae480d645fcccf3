"""Reference of the command line, written from the typer app: `python docs/tools/cli_reference.py`."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = """# Command line

Every command and option of `tessera`, generated from the program. `tessera COMMAND --help` prints the same.
Exit codes: 0 done, 1 failed, 2 misused (one line that names what was asked, what was found and what to do).
"""


def cli_page() -> str:
    """Markdown of the page: one section for each command."""
    from tessera.cli import app

    lines = [HEAD]
    for name, command in commands(app.commands(), "tessera"):
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        options = [
            parameter
            for parameter in command.params
            if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False)
        ]
        usage = " ".join([name, *(metavar(argument) for argument in arguments), *(["[OPTIONS]"] if options else [])])
        lines += [f"## `{name}`", "", "```text", usage, "```", "", *paragraphs(command.help), ""]
        if command.params:
            lines += ["| | default | meaning |", "|---|---|---|"]
            hints = typing.get_type_hints(command.callback)
            lines += [row(parameter, hints.get(parameter.name)) for parameter in [*arguments, *options]] + [""]
    return "\n".join(lines)


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All commands of the program, depth first, with their full names."""
    for verb, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {verb}")
        else:
            yield f"{name} {verb}", command


def metavar(argument: Any) -> str:
    word = (argument.metavar or argument.name).upper()
    return word if argument.required else f"[{word}]"


def paragraphs(text: str | None) -> list[str]:
    """The help of a command; examples become code blocks, click's marks of verbatim paragraphs are removed."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text or "").replace("\b", "").split("\n\n"):
        paragraph = paragraph.strip("\n")
        title, colon, example = paragraph.partition(":")
        if title in ("Example", "Examples") and colon:
            lines += ["```text", *(line.strip() for line in example.strip().splitlines()), "```", ""]
        else:
            lines += [paragraph, ""]
    return lines


def type_name(hint: Any) -> str:
    """The kind of value that an option takes, from the annotation of the command's function."""
    kinds = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
    parts = [hint, *typing.get_args(hint)]
    return next((kinds[part] for part in parts if part in kinds), "TEXT")


def row(parameter: Any, hint: Any) -> str:
    """A row of the table of arguments and options."""
    if parameter.param_type_name == "argument":
        names = metavar(parameter)
    else:
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if not parameter.is_flag:
            names += f" {type_name(hint)}"
    default = parameter.default
    shown = "" if default in (None, False, [], ()) or callable(default) else f"`{default}`"
    if parameter.required:
        shown = "required"
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")
    return f"| `{names}` | {shown} | {meaning} |"


if __name__ == "__main__":
    print(cli_page())
