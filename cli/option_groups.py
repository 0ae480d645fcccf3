"""Options that several verbs share, and options derived from the fields of `GenerationConfig`.

    @with_groups(settings=("guidance", "temperature"))
    def tts(text: ..., samples: SampleOptions, output: OutputOptions, settings: dict[str, Any]) -> None:

A parameter of a dataclass below stands for one option per field. `settings` stands for one option per named setting,
and receives those that were given as {name: value}, checked against `GenerationConfig`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .option_limits import MAX_SAMPLES, MAX_SEED
from .setting_options import check_settings, setting_option

WEIGHTS_HELP = "Storage of the weight matrices: float32, bfloat16, int8 or int4; fewer bits are faster."

LexiconOption = Annotated[
    Path | None,
    typer.Option(help="Pronunciations for models that speak phonemes: a word, a tab, its phonemes on each line."),
]


@dataclass(frozen=True)
class SampleOptions:
    """How many samples, and their seeds."""

    n: Annotated[
        int, typer.Option("-n", "--count", min=1, max=MAX_SAMPLES, help="Number of samples for each text or label.")
    ] = 1
    seed: Annotated[
        int,
        typer.Option(min=-MAX_SEED, max=MAX_SEED, help="Seed of the first sample; the next has seed + 1, and so on."),
    ] = 0


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded."""

    weights: Annotated[str | None, typer.Option(help=WEIGHTS_HELP)] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto"
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of low-rank changes of the model (tessera export RUN --adapter).")
    ] = None


@dataclass(frozen=True)
class OutputOptions:
    """Where samples are written."""

    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            help="A file for one sample (audio: .wav or .flac; images: .png, .jpg or .webp), a directory for several.",
        ),
    ]
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False


@dataclass(frozen=True)
class SubtitleOptions:
    """What is written beside audio."""

    srt: Annotated[
        Path | None,
        typer.Option(help="Also write subtitles (.srt) with the time of each word; for models with an aligned text."),
    ] = None


@dataclass(frozen=True)
class ImageOptions:
    """How images are written."""

    scale: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images: enlarge N times in both directions; default: images under 128 pixels to 256 or more.",
            show_default=False,
        ),
    ] = None
    grid: Annotated[bool, typer.Option("--grid", help="Images: write all as a grid into the one file given by -o.")] = (
        False
    )


def with_groups(settings: Iterable[str] = ()) -> Callable[[Callable], Callable]:
    """Decorator: expand the groups among a verb's parameters to options; `settings`: names of generation settings."""
    names = tuple(settings)

    def decorate(verb: Callable) -> Callable:
        hints = get_type_hints(verb, include_extras=True)
        parameters: list[inspect.Parameter] = []
        groups: dict[str, Any] = {}
        for parameter in inspect.signature(verb).parameters.values():
            hint = hints[parameter.name]
            if is_dataclass(hint):
                groups[parameter.name] = hint
                inner = get_type_hints(hint, include_extras=True)
                parameters += [_option(field.name, inner[field.name], field.default) for field in fields(hint)]
            elif parameter.name == "settings":
                parameters += [_option(name, setting_option(name)) for name in names]
            else:
                parameters.append(_option(parameter.name, hint, parameter.default))

        def run(**values: Any) -> None:
            made = {
                name: group(**{field.name: values.pop(field.name) for field in fields(group)})
                for name, group in groups.items()
            }
            if names:
                made["settings"] = check_settings({name: values.pop(name) for name in names})
            verb(**values, **made)

        run.__name__, run.__doc__, run.__module__ = verb.__name__, verb.__doc__, verb.__module__
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _option(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    given = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=given)
