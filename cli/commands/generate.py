"""`tessera generate`: generates samples with any model and saves them to files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..option_groups import (
    ImageOptions,
    LexiconOption,
    ModelOptions,
    OutputOptions,
    SampleOptions,
    SubtitleOptions,
    with_groups,
)
from ..option_limits import MAX_BATCH, MAX_FRAMES
from ..setting_options import SETTINGS


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(with_groups(settings=SETTINGS)(generate))


def generate(
    model: Annotated[str, typer.Argument(help="Model directory, or the name of a bundled model.")],
    output: OutputOptions,
    samples: SampleOptions,
    text: Annotated[list[str] | None, typer.Option(help="Text to speak or depict; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label, by name or number; may be repeated.")] = None,
    voice: Annotated[
        list[str] | None,
        typer.Option(help="Audio, image or codes to imitate, for models with such a condition; may be repeated."),
    ] = None,
    voice_frames: Annotated[
        int | None, typer.Option(min=1, max=MAX_FRAMES, help="Use only the first frames of the voice.")
    ] = None,
    voice_text: Annotated[
        str | None, typer.Option(help="The words of the voice, for models that read them (CSM, Qwen3-TTS).")
    ] = None,
    melody: Annotated[
        list[str] | None,
        typer.Option(help="Audio whose melody to follow, for models with such a condition; may be repeated."),
    ] = None,
    description: Annotated[
        list[str] | None,
        typer.Option(help="How it sounds, for models that read this beside the text; may be repeated."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Language of the text, by name, for models with such names; may be repeated."),
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="Audio, image or codes (.safetensors) that the samples begin with.")
    ] = None,
    prompt_frames: Annotated[
        int | None, typer.Option(min=1, max=MAX_FRAMES, help="Use only the first frames of the prompt.")
    ] = None,
    lexicon: LexiconOption = None,
    unconditional: Annotated[bool, typer.Option("--unconditional", help="Generate without text or label.")] = False,
    max_seconds: Annotated[float | None, typer.Option(help="Maximum length of audio, instead of --max-frames.")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=MAX_FRAMES, help="Generate exactly this number of frames of audio.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="One sample at a time: rounding does not depend on the others.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Samples generated at a time.")] = 64,
    *,
    loading: ModelOptions,
    image: ImageOptions,
    subtitles: SubtitleOptions,
    settings: dict[str, Any],
) -> None:
    """Generate samples and save them.

    Example: tessera generate digits --label 7 -n 16 --seed 0 -o out/sevens

    The model's defaults apply to options that are not given. The same seed gives the same sample alone or in a batch.
    Values per codebook are separated by commas: --temperature 0.9,0.8,0.8,0.7.
    """
    from ..make_samples import label_of, make_samples
    from ..open_model import open_model

    loaded = open_model(model, loading, lexicon)
    make_samples(
        loaded,
        max(1, *(len(given or ()) for given in (text, label, voice, melody, description, language))) * samples.n,
        output,
        image,
        subtitles.srt,
        text=_one_or_list(text),
        label=_one_or_list([label_of(loaded, one) for one in label] if label else None),
        voice=_one_or_list(voice),
        voice_frames=voice_frames,
        voice_text=voice_text,
        melody=_one_or_list(melody),
        description=_one_or_list(description),
        language=_one_or_list(language),
        n=samples.n,
        seed=samples.seed,
        max_seconds=max_seconds,
        num_frames=frames,
        prompt=prompt,
        prompt_frames=prompt_frames,
        unconditional=unconditional,
        exact=exact,
        batch=batch,
        **settings,
    )


def _one_or_list(values: list | None):
    return None if not values else values[0] if len(values) == 1 else values
