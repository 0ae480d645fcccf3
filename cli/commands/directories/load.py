"""`tessera load`: says what a folder is and what loading it reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ....configs.printable import printable

if TYPE_CHECKING:
    from ....lm.public.summary import Summary

MAX_NAMES = 5


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(load)


def load(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Public checkpoint, Tessera model or tokenizer.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare names and shapes of tensors only; read no weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a model or tokenizer is, and what loading it reads.

    Example: tessera load --check musicgen-small

    Prints the system that was recognized, the configuration, the number of tensors and parameters of each part, what is
    left out, and tensors that are missing or do not belong there; then the exit code is 1. Without --check the weights
    are read as well.
    """
    from ....lm.public.summary import summarize
    from ....tokenize.bundled import bundled_model, shipped_path

    folder = shipped_path(path)
    folder = folder if folder.exists() else bundled_model(path) or folder
    summary = summarize(folder)
    print(json.dumps(asdict(summary) | {"fits": summary.fits}) if as_json else "\n".join(_lines(path, summary)))
    if not summary.fits:
        raise typer.Exit(1)
    if not check:
        _read(folder, summary)


def _read(folder: Path, summary: Summary) -> None:
    """Read the weights, which finds what their names and shapes do not tell."""
    from ....generate.loading import load as load_model
    from ....tokenize.tokenizer import load_tokenizer

    if any(part.name == "language model" for part in summary.parts):
        load_model(folder, "cpu")
    else:
        load_tokenizer(folder)


def _lines(path: Path, summary: Summary) -> list[str]:
    lines = [f"{path}: {summary.kind}"]
    for part in summary.parts:
        counts = f"{part.num_parameters / 1e6:.2f} M parameters in {part.num_tensors} tensors"
        lines.append(f"  {part.name}: {printable(part.described, 400)}; {counts}")
        for what, names in (
            ("missing", part.missing), ("unexpected", part.unexpected), ("of another shape", part.misshapen)
        ):  # fmt: skip
            if names:
                lines.append(f"    {what}: {_named(names)}")
    if summary.lacks:
        lines.append(f"  not in the folder: {', '.join(summary.lacks)}")
    if summary.left_out:
        lines.append(f"  not read: {_named(summary.left_out)}")
    return lines


def _named(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return printable(", ".join(names[:MAX_NAMES]) + more, 1000)
