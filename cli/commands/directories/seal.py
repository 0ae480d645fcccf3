"""`tessera seal`: rewrites the fingerprint of a model directory after an intended edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....configs.printable import say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(seal)


def seal(model: Annotated[Path, typer.Argument(help="Directory of a model.")]) -> None:
    """Rewrite the fingerprint of a model directory after an intended edit.

    Example: tessera seal out/digits/model

    fingerprint.json holds the size and SHA-256 of each file, and a model is refused if one of them differs. Edit
    config.json, for instance its generation defaults, then run this command. The model is loaded first: an unusable
    model is not sealed.
    """
    from ....lm.checkpoints.model_directory import seal_model

    names = seal_model(model)
    say(f"{model}: sealed {', '.join(names)}")
