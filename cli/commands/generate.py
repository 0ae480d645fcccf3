"""`tessera generate`: generates samples with any model and saves them to files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..generation_options import CACHE_HELP, GRID_HELP, SCALE_HELP, STEP_HELP, WEIGHTS_HELP
from ..option_limits import MAX_BATCH, MAX_DRAFT, MAX_FRAMES, MAX_PASSES, MAX_SAMPLES, MAX_SEED


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(generate)


def generate(
    model: Annotated[str, typer.Argument(help="Model directory, or the name of a bundled model.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--out", help="A .png, .jpg, .webp, .wav or .flac file for one, else a directory."),
    ],
    text: Annotated[list[str] | None, typer.Option(help="Text to say or show; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label, by name or number; may be repeated.")] = None,
    n: Annotated[
        int, typer.Option("-n", "--count", min=1, max=MAX_SAMPLES, help="Samples for each text or label.")
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(min=-MAX_SEED, max=MAX_SEED, help="Seed of the first sample; the next has seed + 1, and so on."),
    ] = 0,
    guidance: Annotated[
        str | None,
        typer.Option(
            help="1: none; higher follows the text or label closer. One per codebook: 3,2,1. "
            "A schedule: '{kind: linear, scale: 3}' (constant, interval, linear, cosine)."
        ),
    ] = None,
    temperature: Annotated[str | None, typer.Option(help="0: the likeliest; or one per codebook: 1,0.9,0.8.")] = None,
    top_k: Annotated[str | None, typer.Option(help="Keep the k likeliest codes; 0: all.")] = None,
    top_p: Annotated[str | None, typer.Option(help="Keep the likeliest codes that sum to p; 1: all.")] = None,
    min_p: Annotated[str | None, typer.Option(help="Drop codes below this share of the likeliest.")] = None,
    repetition_penalty: Annotated[
        str | None, typer.Option(help="Above 1: codes drawn lately are less likely; or one per codebook.")
    ] = None,
    repetition_window: Annotated[str | None, typer.Option(help="Frames that the penalty remembers.")] = None,
    ras: Annotated[
        str | None, typer.Option(help="Repetition-aware sampling: frames to look back, 10 is usual; 0: off.")
    ] = None,
    ras_tau: Annotated[
        str | None, typer.Option(help="Draw again what is at least this share of the frames looked back on.")
    ] = None,
    end_bias: Annotated[float | None, typer.Option(help="Above 0 sounds end sooner, below 0 later.")] = None,
    end_rule: Annotated[str | None, typer.Option(help="drawn; likeliest: end only where no code is likelier.")] = None,
    max_silence: Annotated[float | None, typer.Option(help="Longest silence, in seconds; 0: no limit.")] = None,
    passes: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_PASSES, help="Of masked and coarse-to-fine models: passes that fill codes in."),
    ] = None,
    fine_temperature: Annotated[str | None, typer.Option(help="Of coarse-to-fine models: the refiner's.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Longest sound.")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=MAX_FRAMES, help="Make exactly so many frames of sound.")
    ] = None,
    voice: Annotated[
        list[str] | None,
        typer.Option(
            help="Sound, picture or codes to follow, not to begin with, for models that can; may be repeated."
        ),
    ] = None,
    voice_frames: Annotated[
        int | None, typer.Option(min=1, max=MAX_FRAMES, help="Use only so many frames of the voice.")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="Sound, picture or codes (.safetensors) that the samples begin with.")
    ] = None,
    prompt_frames: Annotated[
        int | None, typer.Option(min=1, max=MAX_FRAMES, help="Use only so many frames of the prompt.")
    ] = None,
    unconditional: Annotated[bool, typer.Option("--unconditional", help="Generate without text or label.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="One by one: no rounding depends on the others.")] = False,
    cache: Annotated[str | None, typer.Option(help=CACHE_HELP)] = None,
    draft: Annotated[
        int | None,
        typer.Option(
            min=0, max=MAX_DRAFT, help="Steps to guess at a time, for models trained with lm.ahead; same samples."
        ),
    ] = None,
    step: Annotated[str | None, typer.Option(help=STEP_HELP)] = None,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Samples made at a time.")] = 64,
    weights: Annotated[str | None, typer.Option(help=WEIGHTS_HELP)] = None,
    scale: Annotated[int | None, typer.Option(min=1, help=f"Of pictures: {SCALE_HELP}", show_default=False)] = None,
    grid: Annotated[bool, typer.Option("--grid", help=f"Of pictures: {GRID_HELP}")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Generate samples and save them.

    Example: tessera generate digits --label 7 -n 16 --seed 0 -o out/sevens

    The model's defaults apply to options that are not given. The same seed gives the same sample alone or in a batch.
    Values per codebook are separated by commas: --temperature 0.9,0.8,0.8,0.7.
    """
    from ...generate.model import load
    from ..generation_options import guidance_of, label_of, make_samples, numbers

    settings = {
        "temperature": numbers(temperature, "--temperature"),
        "top_k": numbers(top_k, "--top-k", whole=True),
        "top_p": numbers(top_p, "--top-p"),
        "min_p": numbers(min_p, "--min-p"),
        "repetition_penalty": numbers(repetition_penalty, "--repetition-penalty"),
        "repetition_window": numbers(repetition_window, "--repetition-window", whole=True),
        "ras": numbers(ras, "--ras", whole=True),
        "ras_tau": numbers(ras_tau, "--ras-tau"),
        "end_bias": end_bias,
        "end_rule": end_rule,
        "max_silence": max_silence,
        "passes": passes,
        "fine_temperature": numbers(fine_temperature, "--fine-temperature"),
    }
    loaded = load(model, device, weights=weights)  # pyright: ignore[reportArgumentType]
    make_samples(
        loaded,
        output,
        max(len(text or ()), len(label or ()), len(voice or ()), 1) * n,
        as_json,
        scale,
        grid,
        text=_one_or_list(text),
        label=_one_or_list([label_of(loaded, one) for one in label] if label else None),
        voice=_one_or_list(voice),
        voice_frames=voice_frames,
        n=n,
        seed=seed,
        guidance=guidance_of(guidance),
        max_seconds=max_seconds,
        num_frames=frames,
        prompt=prompt,
        prompt_frames=prompt_frames,
        unconditional=unconditional,
        exact=exact,
        batch=batch,
        cache=cache,
        draft=draft,
        step=step,
        **settings,
    )


def _one_or_list(values: list | None):
    return None if not values else values[0] if len(values) == 1 else values
