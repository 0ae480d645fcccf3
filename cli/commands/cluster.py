"""`tessera coarse`: clusters the codes of a tokenizer for coarse-to-fine models."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...configs.printable import say
from ..option_limits import MAX_SEED

if TYPE_CHECKING:
    from ...lm.clustering.clustering import ClusterReport


class Method(str, Enum):
    """See lm/clustering/algorithms.py."""

    kmeans = "kmeans"
    balanced = "balanced"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(coarse)


def coarse(
    tokenizer: Annotated[str, typer.Argument(help="Directory of a tokenizer or a model, or a bundled model's name.")],
    clusters: Annotated[
        str, typer.Option(help="Number of clusters per codebook: one number for all, or one per codebook: 16,8,8.")
    ],
    output: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write the clusters to.")],
    method: Annotated[Method, typer.Option(help="balanced: all clusters equally large.")] = Method.kmeans,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Random seed of the clustering.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Cluster the codes of each codebook by similarity.

    Example: tessera coarse digits --clusters 8 -o out/digits-ctf/clusters

    A language model trained with `clusters: DIR` predicts the cluster of each code; a refiner trained with the same
    clusters then predicts the codes. A warning is printed if clusters are no better than random ones.
    """
    from ...configs.folder_lock import lock_folder
    from ...lm.clustering.clustering import cluster_codes, measure_clusters
    from ..resolve import open_tokenizer
    from ..setting_options import numbers

    opened = open_tokenizer(tokenizer)
    found = cluster_codes(opened, numbers(clusters, "--clusters", whole=True), method.value, seed)  # type: ignore
    reports = measure_clusters(found, opened.vectors())
    with lock_folder(output, "tessera coarse"):
        found.save(output)
    if as_json:
        codebooks = [{**asdict(report), "closer": report.closer} for report in reports]
        print(json.dumps({"tokenizer": opened.spec.name, "method": method.value, "codebooks": codebooks}, indent=2))
    else:
        print(format_reports(reports))
    say(f"clusters of tokenizer {opened.spec.name} ({found.spec.fingerprint[:12]}) in {output}")
    for report in reports:
        if report.near_random:
            closer = f"{max(0.0, report.closer):.0%} closer"
            print(
                f"tessera: warning: the clusters of codebook {report.codebook} are hardly better than random "
                f"ones ({closer}) and will not help a refiner; try more clusters, or one",
                file=sys.stderr,
            )


def format_reports(reports: list[ClusterReport]) -> str:
    """Format the reports as a table."""
    lines = [
        f"{'codebook':>8}  {'codes':>6}  {'clusters':>8}  {'codes of a cluster':>18}  {'distance':>8}  {'random':>8}  "
        f"{'closer':>6}"
    ]
    for one in reports:
        sizes = "{} / {} / {}".format(*one.sizes)
        lines.append(
            f"{one.codebook:8d}  {one.codes:6d}  {one.clusters:8d}  {sizes:>18}  {one.distance:8.4f}  "
            f"{one.random_distance:8.4f}  {one.closer:6.0%}"
        )
    return "\n".join([*lines, "codes of a cluster: smallest / middle / largest"])
