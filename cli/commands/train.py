"""`tessera train`: trains a language model on shards, as described by a config."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...configs.printable import say
from ..option_limits import MAX_PROCESSES

if TYPE_CHECKING:
    from ...train.lm.samples import SampleRequest


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(train)


def train(
    config: Annotated[str, typer.Argument(help="YAML file of the run, or a shipped one by its name: own-speech/lm.")],
    set_: Annotated[
        list[str], typer.Option("--set", help="Override a setting of the file: key.path=value. May be repeated.")
    ] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/NAME.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest checkpoint in the folder of the run.")
    ] = False,
    nproc: Annotated[int, typer.Option("--nproc", min=1, max=MAX_PROCESSES, help="Processes on this machine.")] = 1,
) -> None:
    """Train a language model on shards of codes.

    Example: tessera train configs/digits/lm.yaml --set train.steps=200 --out runs/try

    Ctrl-C finishes the step, saves and exits with code 130; --resume continues exactly there, and adding --set
    train.steps=N ends the run earlier or later. tessera export OUT exports a model from the current state of a run. The
    finished model is in OUT/model, losses are in OUT/metrics.jsonl. Several processes: --nproc 2, or
    deepspeed --num_gpus 2 --no_local_rank --module tessera train CONFIG.
    """
    from ..config_files import open_config

    opened = open_config(config, "lm", set_)  # before the imports below, which take seconds
    from ...train.distributed.launch import STOPPED, launch, watch_lifeline
    from ...train.initialization.inherit_lm import inherit_lm
    from ...train.lm.config import TrainConfig
    from ...train.lm.trainer import TrainingFailed, check_out, train_lm

    def fill(data: Any, where: str) -> Any:
        return inherit_lm(data, (out or Path("runs") / str(data.get("name"))) if resume else None, where)

    settings = opened.read_as(TrainConfig, fill)
    folder = out if out is not None else Path("runs") / settings.name
    started_by_launcher = "RANK" in os.environ
    if not started_by_launcher:
        check_out(folder, resume)
    command = ["train", config, *(part for item in set_ for part in ("--set", item)), "--out", str(folder)]
    if nproc > 1 and not started_by_launcher:
        raise typer.Exit(launch([*command, *(["--resume"] if resume else [])], nproc))
    watch_lifeline()
    shown = [
        "tessera",
        *command,
        *(["--nproc", os.environ["WORLD_SIZE"]] if "TESSERA_RENDEZVOUS" in os.environ else []),
    ]
    try:
        finished = train_lm(
            settings, folder, resume=resume, sample=write_samples, command=shlex.join(shown), rehearse=rehearse_samples
        )
    except TrainingFailed as error:
        say(f"tessera: {error}")
        raise typer.Exit(1) from None
    if not finished:
        raise typer.Exit(STOPPED)


def rehearse_samples(request: SampleRequest) -> None:
    """Check before a training run that its samples can be generated."""
    from ...generate.dry_run import rehearse
    from ...generate.loading import model_of

    given = {"label": request.labels, "text": request.texts, "voice": request.voices}
    rehearse(
        model_of(request.model),
        **{name: None if values is None else values[0] for name, values in given.items()},
        unconditional=all(values is None for values in given.values()),
    )


def write_samples(request: SampleRequest) -> None:
    """Generate the samples of a training run in its folder; samples.json records the request."""
    from ...configs.files import write_json
    from ...generate.loading import model_of

    model = model_of(request.model)
    given = any(one is not None for one in (request.labels, request.texts, request.voices))
    result = model.generate(
        label=request.labels,
        text=request.texts,
        voice=request.voices,
        n=1 if given else request.count,
        seed=request.seed,
        unconditional=not given,
    )
    asked = []
    for number, file in enumerate(result.save(request.folder)):
        label = request.labels[number] if request.labels else None
        text = request.texts[number] if request.texts else None
        asked.append({"file": file.name, "label": label, "text": text, "seed": request.seed + number})
    write_json(request.folder / "samples.json", asked)
