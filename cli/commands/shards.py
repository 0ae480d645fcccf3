"""`tessera shards`: encodes a corpus to token shards."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ...configs.printable import say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(shards)


def shards(
    config: Annotated[str, typer.Argument(help="YAML file, or a shipped one by its name: own-speech/shards.")],
    set_: Annotated[
        list[str], typer.Option("--set", help="Override a setting of the file: key.path=value. May be repeated.")
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as one JSON object.")] = False,
) -> None:
    """Encode a corpus into token shards for training.

    Example: tessera shards configs/demo/shards.yaml --set out=out/shards

    If stopped or killed, the same command resumes the work. Unusable items are listed and skipped.
    """
    from ..config_files import open_config

    found = open_config(config, "shards", set_)  # before the imports below, which take seconds
    from ...tokenize.data.shard_writer import build_shards
    from ...tokenize.data.shards_config import ShardsConfig
    from ..resolve import open_tokenizer, report_skipped

    read = found.read_as(ShardsConfig)
    try:
        built = build_shards(read, open_tokenizer(read.tokenizer))
    except KeyboardInterrupt:
        say(f"tessera: {read.out} is not finished; run the same command again to resume")
        raise
    report_skipped([entry.reason for entry in built.skipped], len(built) + len(built.skipped))
    if built.skipped:
        say(f"note: repaired files come in when {read.out} is removed and built again")
    summary = {
        "out": read.out,
        "items": len(built),
        "frames": int(built.lengths.sum()),
        "labels": len(built.label_names),
        "texts": sum(text is not None for text in built.texts()),
        "skipped": len(built.skipped),
    }
    aligned = sum(entry is not None for entry in built.index.alignments)
    if aligned:
        summary["alignments"] = aligned
    if as_json:
        print(json.dumps(summary))
    counts = (
        f"{summary['items']} items, {summary['frames']} frames, {summary['labels']} labels, {summary['texts']} texts"
    )
    counts += f", {aligned} alignments" if aligned else ""
    say(f"{read.out}: {counts}; tokenizer {built.spec.name}")
