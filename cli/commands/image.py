"""`tessera image`: generates an image from a label or a caption."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..generation_options import GRID_HELP, SCALE_HELP
from ..option_limits import MAX_SAMPLES, MAX_SEED


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(image)


def image(
    prompt: Annotated[str, typer.Argument(help="A caption, or a label of the model.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="A .png, .jpg or .webp file; a directory for several.")],
    model: Annotated[str, typer.Option(help="Model directory, or the name of a bundled model.")] = "digits",
    n: Annotated[int, typer.Option("-n", "--count", min=1, max=MAX_SAMPLES, help="Pictures.")] = 1,
    seed: Annotated[
        int,
        typer.Option(min=-MAX_SEED, max=MAX_SEED, help="Seed of the first picture; the next has seed + 1, and so on."),
    ] = 0,
    guidance: Annotated[str | None, typer.Option(help="1: none; higher follows the prompt closer.")] = None,
    temperature: Annotated[str | None, typer.Option(help="Lower is plainer. A number, or one per codebook.")] = None,
    frames: Annotated[
        Path | None, typer.Option(help="A directory for the picture while it grows: 0000.png, 0001.png, ...")
    ] = None,
    scale: Annotated[int | None, typer.Option(min=1, help=SCALE_HELP, show_default=False)] = None,
    grid: Annotated[bool, typer.Option("--grid", help=GRID_HELP)] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Generate an image.

    Example: tessera image 7 -o seven.png

    Example: tessera image 7 -n 16 --grid -o sevens.png

    A text model takes the prompt as a caption, other models as a label. tessera generate has all settings.
    """
    from ...generate.model import load
    from ..generation_options import guidance_of, label_of, make_samples, numbers
    from ..streaming_output import stream_image_to

    plainness = numbers(temperature, "--temperature")
    loaded = load(model, device)
    if loaded.spec.geometry.kind != "picture":
        raise ValueError(f"model '{model}' makes no pictures; for sound use: tessera tts")
    if loaded.text is None and not loaded.labels:
        raise ValueError(f"model '{model}' takes no prompt; use: tessera generate {model} -o {output}")
    condition = {"label": label_of(loaded, prompt)} if loaded.text is None else {"text": prompt}
    call = {"seed": seed, "guidance": guidance_of(guidance), "temperature": plainness, **condition}
    if frames is None:
        make_samples(loaded, output, n, as_json, scale, grid, n=n, **call)
    elif n == 1 and not grid:
        stream_image_to(loaded, output, frames, as_json, scale, **call)
    else:
        given = "--grid was given" if grid else f"-n is {n}"
        raise typer.BadParameter(f"--frames shows how one picture grows, but {given}; leave one of them out")
