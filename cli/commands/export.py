"""`tessera export`: exports a model from a checkpoint of a run, finished or stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...configs.printable import say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(export)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of tessera train or tessera tokenizer train.")],
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="The checkpoint of this step; default: the newest.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The checkpoint with the lowest loss on data.test.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write; default RUN/model, of a finished run RUN/model-STEP."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Another tokenizer with the same codes: one whose decoder was trained further."),
    ] = None,
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="Of a run with lora: only the low-rank changes; default folder RUN/adapter."),
    ] = False,
    set_: Annotated[
        list[str],
        typer.Option("--set", help="A setting of the run's config to change: tokenizer=DIR, export.dtype=float32."),
    ] = [],  # noqa: B006
) -> None:
    """Export a model from a checkpoint of a run, even if the run was stopped or killed.

    Example: tessera export runs/digits --best --out out/digits

    The result equals what the run would have exported at that step, with the moving average of the weights if the run
    has one. For a tokenizer run, the tokenizer is frozen at that step, by default in RUN/snapshot-STEP. The low-rank
    changes of a run with lora are merged into the weights; --adapter writes them alone, for the model it started from.
    """
    from ...train.export_run import export_run

    made = export_run(run, out, step=step, best=best, sets=set_, tokenizer=tokenizer, adapter=adapter)
    say(f"{made.what} of step {made.step} written to {made.folder}")
    say(f"{made.advice}")
