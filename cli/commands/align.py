"""`tessera align`: finds when each unit of each transcript sounds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ...configs.printable import say

if TYPE_CHECKING:
    from ...train.align.aligner import AlignReport

WORST = 10
"""Number of the worst items that are listed."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(align)


def align(
    config: Annotated[str, typer.Argument(help="YAML file, or a shipped one by its name: own-speech/align.")],
    set_: Annotated[
        list[str], typer.Option("--set", help="Override a setting of the file: key.path=value. May be repeated.")
    ] = [],  # noqa: B006
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object: score, length and units of each item.")
    ] = False,
) -> None:
    """Find when each phoneme or character of your recordings sounds, from the recordings and transcripts alone.

    Example: tessera align configs/own-speech/align.yaml --set corpus.path=recordings

    Writes NAME.align for each recording (units with start and end in seconds) and report.json. The recordings with the
    lowest scores are listed: their transcripts may be wrong. If stopped or killed, the same command resumes the work.
    """
    from ..config_files import open_config

    found = open_config(config, "align", set_)  # before the imports below, which take seconds
    from ...train.align.aligner import align_corpus
    from ...train.align.config import AlignConfig
    from ..resolve import report_skipped

    read = found.read_as(AlignConfig)
    try:
        report = align_corpus(read)
    except KeyboardInterrupt:
        say(f"tessera: {read.out} is not finished; run the same command again to resume")
        raise
    report_skipped([entry["reason"] for entry in report.skipped], len(report.items) + len(report.skipped))
    if as_json:
        from dataclasses import asdict

        print(json.dumps(asdict(report)))
    _summarize(report)


def _summarize(report: AlignReport) -> None:
    scores = [item.score for item in report.items]
    if len(scores) > WORST:
        say("the lowest scores, where the transcript may be wrong:")
        for item in report.items[:WORST]:
            say(f"  {item.score:7.2f}  {item.id}")
    minutes = sum(item.seconds for item in report.items) / 60
    say(f"{report.out}: {len(scores)} items, {minutes:.1f} minutes; median score {scores[len(scores) // 2]:.2f}")
