"""`tessera seal`: the fingerprint of a model directory, after its files were changed on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...configs.printable import say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(seal)


def seal(model: Annotated[Path, typer.Argument(help="Directory of a model.")]) -> None:
    """Write the fingerprint of a model directory anew, after an edit on purpose.

    Example: tessera seal out/digits/model

    fingerprint.json holds the size and SHA-256 of each file, and a model is refused where one of them differs. Edit
    config.json, for instance the defaults of its generation, then run this. The model is loaded first: one that cannot
    be used is not sealed.
    """
    from ...lm.checkpoints.model_directory import seal_model

    names = seal_model(model)
    say(f"{model}: sealed {', '.join(names)}")
