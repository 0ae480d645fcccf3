"""`tessera image`: generates an image from a label or a caption."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..option_groups import ImageOptions, ModelOptions, OutputOptions, SampleOptions, with_groups


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(with_groups(settings=("guidance", "temperature", "top_k", "top_p"))(image))


def image(
    prompt: Annotated[str, typer.Argument(help="A caption, or a label of the model.")],
    output: OutputOptions,
    samples: SampleOptions,
    model: Annotated[str, typer.Option(help="Model directory, or the name of a bundled model.")] = "emoji",
    style: Annotated[
        str | None, typer.Option(help="A style: a label of a model that reads captions.", show_default=False)
    ] = None,
    frames: Annotated[
        Path | None, typer.Option(help="A directory for the partial images: 0000.png, 0001.png, ...")
    ] = None,
    *,
    shown: ImageOptions,
    loading: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Generate an image.

    Example: tessera image "a red apple" --style noto -o apple.png

    Example: tessera image 7 --model digits -n 16 --grid -o sevens.png

    A text model takes the prompt as a caption and --style as a label, other models take the prompt as a label. tessera
    generate has all settings.
    """
    from ..make_samples import label_of, make_samples
    from ..open_model import open_model
    from ..streaming_output import stream_image_to

    loaded = open_model(model, loading)
    if loaded.spec.geometry.kind != "picture":
        raise ValueError(f"model '{model}' makes no images; for audio use: tessera tts")
    if not loaded.reads_text and not loaded.labels:
        raise ValueError(f"model '{model}' takes no prompt; use: tessera generate {model} -o {output.output}")
    if not loaded.reads_text:
        if style is not None:
            raise ValueError(f"--style {style}: the prompt of model '{model}' is its label; leave --style out")
        condition = {"label": label_of(loaded, prompt)}
    else:
        condition = {"text": prompt, "label": None if style is None else label_of(loaded, style)}
    call = {"seed": samples.seed, **settings, **condition}
    if frames is None:
        make_samples(loaded, samples.n, output, shown, n=samples.n, **call)
    elif samples.n == 1 and not shown.grid:
        stream_image_to(loaded, output, frames, shown.scale, **call)
    else:
        given = "--grid was given" if shown.grid else f"-n is {samples.n}"
        raise typer.BadParameter(f"--frames writes the partial images of one image, but {given}; leave one of them out")
