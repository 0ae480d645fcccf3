"""`tessera transcribe`: writes down the text of speech."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..option_groups import ModelOptions, with_groups
from ..option_limits import MAX_BATCH, MAX_SEED

MAX_IDS = 1_000_000


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(with_groups(settings=("temperature", "top_k", "top_p", "guidance"))(transcribe))


def transcribe(
    model: Annotated[str, typer.Argument(help="Model directory of a model with a text stream.")],
    audio: Annotated[list[str], typer.Argument(help="Audio files, or files of codes of one item (.safetensors).")],
    label: Annotated[str | None, typer.Option(help="Label of the recordings, for models with labels.")] = None,
    max_ids: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_IDS, help="Longest text, in ids; default: 32 for each second, and 16."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=-MAX_SEED, max=MAX_SEED, help="Seed of the first file, for a temperature above 0.")
    ] = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="One file at a time: rounding does not depend on the others.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Files written down at a time.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of files and texts as JSON.")] = False,
    *,
    loading: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Print the text of recordings of speech, one line for each, with a model that has a text stream.

    Example: tessera transcribe runs/interleaved/model one.wav two.flac

    The likeliest ids are taken, whatever the sampling defaults of the model.
    """
    from ...configs.printable import printable
    from ..make_samples import label_of
    from ..open_model import open_model

    loaded = open_model(model, loading)
    texts = loaded.transcribe(
        audio,
        label=None if label is None else label_of(loaded, label),
        max_ids=max_ids,
        seed=seed,
        exact=exact,
        batch=batch,
        **settings,
    )
    if as_json:
        print(json.dumps([{"file": file, "text": text} for file, text in zip(audio, texts, strict=True)], indent=2))
        return
    for text in texts:
        print(printable(text, len(text)))
