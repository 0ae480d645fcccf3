"""`tessera tokenizer train`, `eval` and `coder`."""

from __future__ import annotations

import json
import os
import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ...configs.printable import say
from ..option_limits import MAX_FRAMES, MAX_ITEMS, MAX_PROCESSES


class FitChoice(str, Enum):
    """See FolderCorpus.fit."""

    exact = "exact"
    crop = "crop"
    stretch = "stretch"


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(
        name="tokenizer",
        help="Train a tokenizer and freeze it; measure a frozen one.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("train")(train)
    group.command("eval")(evaluate)
    group.command("coder")(coder)
    app.add_typer(group)


def train(
    config: Annotated[str, typer.Argument(help="YAML file of the run, or a shipped one by its name: tokenize/mimi.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run, and of the frozen tokenizer.")],
    set_: Annotated[
        list[str], typer.Option("--set", help="Override a setting of the file: key.path=value. May be repeated.")
    ] = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the newest checkpoint in OUT.")] = False,
    nproc: Annotated[int, typer.Option("--nproc", min=1, max=MAX_PROCESSES, help="Processes on this machine.")] = 1,
) -> None:
    """Train a tokenizer on audio or images and freeze it.

    Example: tessera tokenizer train configs/digits/tokenizer.yaml --set train.steps=200 --out out/digits-tokenizer

    OUT then holds config.json and tokenizer.safetensors. Ctrl-C finishes the step, saves, freezes the current tokenizer
    in OUT/snapshot-STEP and exits with code 130; --resume continues exactly there.
    """
    from ..config_files import open_config

    opened = open_config(config, "tokenizer", set_)  # before the imports below, which take seconds
    from ...train.distributed.launch import STOPPED, launch, watch_lifeline
    from ...train.tokenizer.trainer import TokenizerTrainConfig, TrainingFailed, check_free, train_tokenizer

    settings = opened.read_as(TokenizerTrainConfig)
    command = ["tokenizer", "train", config, *(part for item in set_ for part in ("--set", item))]
    command += ["--out", str(out)]
    started_by_launcher = "RANK" in os.environ
    if not started_by_launcher:
        check_free(out, resume)
    if nproc > 1 and not started_by_launcher:
        raise typer.Exit(launch([*command, *(["--resume"] if resume else [])], nproc))
    watch_lifeline()
    processes = ["--nproc", os.environ["WORLD_SIZE"]] if "TESSERA_RENDEZVOUS" in os.environ else []
    shown = shlex.join(["tessera", *command, *processes])
    try:
        tokenizer = train_tokenizer(settings, out, resume=resume, command=shown)
    except TrainingFailed as error:
        say(f"tessera: {error}")
        raise typer.Exit(1) from None
    if tokenizer is None:
        raise typer.Exit(STOPPED)
    if os.environ.get("RANK", "0") == "0":
        say(f"frozen tokenizer {tokenizer.spec.name} ({tokenizer.spec.fingerprint[:12]}) in {out}")
        say(f"measure it with: tessera tokenizer eval {out}")


def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Of a tokenizer or a model, or a bundled model's name.")
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of media, or .safetensors of images; default: the bundled test samples."),
    ] = None,
    items: Annotated[
        int, typer.Option("--items", min=1, max=MAX_ITEMS, help="Number of items at most, spread over the data.")
    ] = 100,
    fit: Annotated[FitChoice, typer.Option("--fit", help="How to treat images of another size.")] = FitChoice.exact,
    model: Annotated[
        str | None,
        typer.Option(
            help="A coder, or a model: also measure the bits given the previous frames (by its coder if it has one)."
        ),
    ] = None,
    window: Annotated[int, typer.Option(min=1, max=MAX_FRAMES, help="Window of the code usage, in frames.")] = 4096,
    page: Annotated[Path | None, typer.Option(help="Also write an HTML page with images and audio.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a frozen tokenizer: fidelity, code usage, bits, stability of the codes, speed and memory.

    Example: tessera tokenizer eval out/digits-tokenizer --data samples/digits/test.safetensors

    Measurements that need a missing package are skipped with a note. Exit code 1 if a code changes with the batch,
    padding or precision of the call.
    """
    from ...configs.output_place import prepare_file
    from ...tokenize.bundled import shipped_path
    from ...train.evaluation.tokenizer_eval import corpus_for, evaluate_tokenizer
    from ...train.evaluation.tokenizer_table import report_table
    from ..resolve import open_code_model, open_tokenizer

    tokenizer = open_tokenizer(folder)
    if page is not None:
        prepare_file(page)
    reader = None if model is None else open_code_model(model, tokenizer.spec)
    corpus = corpus_for(tokenizer.spec, None if data is None else shipped_path(data), fit.value)
    evaluation = evaluate_tokenizer(tokenizer, corpus, items, model=reader, window=window)
    report = evaluation.report
    if page is not None:
        from ..report.tokenizer_report import write_page

        words = [str(folder), *(["--data", str(data)] if data else []), *(["--model", model] if model else [])]
        say(f"page: {write_page(evaluation, tokenizer.spec, page, ' '.join(words))}")
    print(json.dumps(report.as_dict(), indent=2) if json_ else report_table(report))
    if report.skipped:
        say(f"tessera: skipped {len(report.skipped)} items that could not be read")
    if not report.stability.stable:
        say("tessera: codes of this tokenizer depend on the batch, padding or autocast; do not store them")
        raise typer.Exit(1)


def coder(
    config: Annotated[str, typer.Argument(help="YAML file, or a shipped one by its name: digits/coder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the coder; coder/ in a model's directory is found.")],
    set_: Annotated[
        list[str], typer.Option("--set", help="Override a setting of the file: key.path=value. May be repeated.")
    ] = [],  # noqa: B006
) -> None:
    """Train the small network that tessera encode --compress --model uses.

    Example: tessera tokenizer coder configs/digits/coder.yaml --out out/digits/coder

    Takes minutes on one CPU core. Prints the bits per frame on the test shards.
    """
    from ..config_files import open_config

    opened = open_config(config, "coder", set_)  # before the imports below, which take seconds
    from ...train.entropy_coder import CoderTrainConfig, train_coder

    bits = train_coder(opened.read_as(CoderTrainConfig), out)
    each = " + ".join(f"{number:.3f}" for number in bits)
    say(f"coder in {out}: {sum(bits):.3f} bits per frame ({each})")
