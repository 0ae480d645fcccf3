"""`tessera configs`: lists, prints and copies the configs shipped with Tessera."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ...configs.printable import say

_COMMAND = re.compile(r"#\s+(tessera|deepspeed|python|torchrun) ")
_COST = re.compile(r"GPU|CPU|[Mm]inutes?\b|[Hh]ours?\b|Seconds\b|^Sized")
_GPUS = re.compile(r"deepspeed --num_gpus (\d+)")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(configs)


def configs(
    name: Annotated[
        str | None,
        typer.Argument(help="A config (own-speech/lm) or a folder of them (own-speech).", show_default=False),
    ] = None,
    copy: Annotated[
        Path | None, typer.Option("--copy", metavar="DIR", help="Copy it, or the whole folder, into DIR.")
    ] = None,
) -> None:
    """List the configs shipped with Tessera, print one, or copy them for editing.

    Example: tessera configs own-speech --copy my-speech

    Without NAME all are listed. Every verb that takes a config also takes such a name: tessera train own-speech/lm.
    The commands in the header of a copied file refer to the copy.
    """
    from ..config_files import all_configs, find_config, shipped_configs, shipped_file

    names = all_configs() if name is None else shipped_configs(name)
    if not names:
        find_config(str(name))  # the error names the nearest configs
        raise ValueError(f"{name}: a local file, not one of the configs that come with Tessera")
    if copy is not None:
        for path in copy_configs(names, copy, keep_folders=name is None):
            print(path)
    elif len(names) == 1:
        print(shipped_file(names[0]).read_text(encoding="utf-8"), end="")
        say(f"{shipped_file(names[0])}; copy it with: tessera configs {names[0]} --copy DIR")
    else:
        print(format_heads([read_head(one) for one in names]))


def copy_configs(names: list[str], folder: Path, keep_folders: bool) -> list[Path]:
    """Copy configs into a folder; the commands in their headers are changed to refer to the copies.

    Args:
        keep_folders: digits/lm becomes folder/digits/lm.yaml, otherwise folder/lm.yaml.
    Raises:
        FileExistsError: a file already exists; nothing is copied. OSError: see `prepare_file`.
    """
    from ...configs.files import write_atomic
    from ...configs.output_place import prepare_file
    from ..config_files import shipped_file

    targets = {one: folder / f"{one if keep_folders else one.split('/')[-1]}.yaml" for one in names}
    taken = [str(path) for path in targets.values() if os.path.lexists(path)]
    if taken:
        raise FileExistsError(f"{', '.join(taken)}: already present, nothing was copied; choose another folder")
    for target in targets.values():
        prepare_file(target)
    for name, target in targets.items():
        text = shipped_file(name).read_text(encoding="utf-8")
        for other, path in targets.items():
            text = text.replace(f"configs/{other}.yaml", path.as_posix())
        write_atomic(target, text.encode(), durable=False)
    return list(targets.values())


@dataclass(frozen=True)
class Head:
    """The contents of a config's header comment."""

    name: str
    command: str
    """The verb that takes it: "tessera train"."""
    about: str
    """Its first sentence."""
    cost: str
    """Time and hardware, if given."""


def read_head(name: str) -> Head:
    """Read the header of a shipped config."""
    from ...configs.recognize import CONFIG_KINDS
    from ..config_files import kind_of_name, shipped_file

    prose: list[list[str]] = [[]]
    commands: list[str] = []
    for line in shipped_file(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if _COMMAND.match(line):
            commands.append(line)
            prose.append([])
        else:
            prose[-1].append(line.removeprefix("#").strip())
    parts = [" ".join(lines) for lines in prose if lines]
    sentences = [one for part in parts for one in re.split(r"(?<=\.)\s+(?=[A-Z(`]|[\w-]+\.yaml)", part)]
    gpus = next((f"{found[1]} GPUs" for found in map(_GPUS.search, commands) if found), "")
    cost = next((one for one in sentences[1:] if _COST.search(one)), gpus)
    return Head(name, CONFIG_KINDS[kind_of_name(name)][1], sentences[0].rstrip(":."), cost.rstrip(":."))


def format_heads(heads: list[Head]) -> str:
    """Format the headers as a table, one line each, grouped by verb."""
    width = max(len(head.name) for head in heads)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 16
    lines: list[str] = []
    for command in sorted({head.command for head in heads}, key=lambda command: -len(command)):
        lines += ["", f"{command} NAME"] if lines else [f"{command} NAME"]
        for head in heads:
            if head.command == command:
                cost = f" [{head.cost}]" if head.cost else ""
                lines.append(f"  {head.name:<{width}}  {head.about}{cost}"[:columns])
    return "\n".join([*lines, "", "tessera configs NAME prints one; tessera configs NAME --copy DIR copies it."])
