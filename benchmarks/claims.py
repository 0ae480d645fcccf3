"""What papers say of their tokenizers, at small scale: each system beside a baseline that is equal in all else.

    python benchmarks/claims.py --project              what the whole table costs, from a few steps of every training
    python benchmarks/claims.py --resume --workers 2   train and measure what is missing; stop it at any time
    python benchmarks/claims.py --page                 write docs/tokenizers.md from the stored results

The claims are in claims.yaml, what is measured in claim_measures.py, what must be equal in claim_fairness.py, and the
rule of the verdict in claim_verdict.py. A side is a config of configs/tokenize as it is, or with the changes of its
row, on patches of two photographs (python -m tessera.samples.make_patches; made here when missing), the bundled digits
or the bundled speech. Both sides are trained with the same seeds, each training on one thread of the CPU, so that a
seed gives the same figures whatever else runs on the machine.

Every training, with its figures, is kept in a folder of --out that is named after its settings, so rows share what they
have in common, and any number of processes may work on the table: one takes what no other has. Results are written to
claims.json after every training, each row with its command, machine, versions and seeds. A row whose settings have
changed since counts as not measured. The trainings of a row must be of one machine: on another, a row is begun again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from claim_fairness import count_parameters, size_of
from claim_measures import MEASURES, PATCHES, ROOT, Trained, bits_of_tests
from claim_table import CLAIMS, Claim, Side, check, config_of, needs_found, run_name
from claims_page import page
from provenance import here, waited_lock
from trainings import in_processes

from tessera.configs.files import read_json, write_json, write_safetensors
from tessera.configs.folder_lock import FolderInUse, lock_folder
from tessera.samples.make_patches import write_patches
from tessera.tokenize.data.corpus import ArraysCorpus, open_corpus
from tessera.tokenize.quantizers.codebooks.nearest import kmeans
from tessera.tokenize.spec import ImageGeometry
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, train_tokenizer

RESULTS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs/tokenizers.md"
HOUR = 3600
PURPOSE = "benchmarks/claims.py"
COMMAND = "python benchmarks/claims.py --resume"
"""What gives the results, stored with them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({claim.system for claim in CLAIMS}), help="some systems")
    parser.add_argument("--resume", action="store_true", help="measure what is missing; needed once there are results")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--project", action="store_true", help="check all rows, and estimate what they cost")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.relative_to(ROOT)} and measure nothing")
    parser.add_argument("--out", type=Path, default=Path("out/claims"), help="trainings and their figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    claims = [claim for claim in CLAIMS if not args.only or claim.system in args.only]
    try:
        if args.page:
            PAGE.write_text(page(CLAIMS, stored()), encoding="utf-8")
        elif args.project:
            project(claims, args.out)
        else:
            if not args.resume and stored():
                raise ValueError(
                    f"{RESULTS.name} holds results: add --resume to measure what is missing, or remove that file and "
                    f"{args.out} to begin again"
                )
            write_media()
            for claim in claims:
                check(claim)
            if args.workers > 1:
                only = ["--only", *args.only] if args.only else []
                sys.exit(in_processes(args.workers, __file__, ["--resume", "--out", str(args.out), *only]))
            measure_all(claims, args.out)
    except ValueError as error:
        print(f"claims.py: {error}", file=sys.stderr)
        sys.exit(2)


# Trainings


@dataclass
class Training:
    """One side of one or more rows with one seed."""

    claim: Claim
    side: Side
    seed: int
    measures: set[str] = field(default_factory=set)
    """Of all rows that share it."""


def measure_all(claims: Sequence[Claim], out: Path) -> None:
    """Train and measure what is missing. What another process is at is left to it, and waited for at the end."""
    waiting = list(missing(claims))
    while waiting:
        busy = []
        for number, training in enumerate(waiting):
            try:
                figures = run(training, out)
            except FolderInUse:
                busy.append(training)
                continue
            values = " ".join(f"{name} {figures['measures'][name]:.4g}," for name in sorted(training.measures))
            where = f"{number + 1} of {len(waiting)}: {training.claim.name}, {training.side}, seed {training.seed}"
            print(f"{where}: {values} {figures['seconds']:.0f} s", file=sys.stderr, flush=True)
            with waited_lock(out / "results", PURPOSE):
                write_json(RESULTS, updated(stored(), out))
        if len(busy) == len(waiting):
            time.sleep(5)
        waiting = busy


def missing(claims: Sequence[Claim]) -> Iterator[Training]:
    """Trainings of rows without all figures, each once, with all measures that any row takes of it."""
    results, found = stored(), {}
    for claim in claims:
        if len(results.get(claim.key, {}).get("seeds", ())) == claim.seeds:
            continue
        for seed in range(claim.seeds):
            for side in claim.sides:
                # A side that needs the result of another is never shared between rows.
                name = f"{claim.name} {seed}" if needs_found(claim, side) else run_name(claim, side, seed)
                found.setdefault(name, Training(claim, side, seed)).measures.add(claim.measure_of(side))
    yield from found.values()


def run(training: Training, out: Path) -> dict[str, Any]:
    """The figures of a training, which is done now unless it was before.

    Raises:
        FolderInUse: another process is at it.
    """
    claim, side, seed = training.claim, training.side, training.seed
    found = None
    if needs_found(claim, side):  # the system is trained first
        found = run(Training(claim, "own", seed, {claim.measure}), out)["codes"][0]
    config = config_of(claim, side, seed, found)
    folder = out / run_name(claim, side, seed, found)
    with lock_folder(folder, PURPOSE):
        figures = figures_in(folder)
        if figures is None:
            shutil.rmtree(folder / "run", ignore_errors=True)
            began = time.process_time()
            if train_tokenizer(config, folder / "run", progress=False) is None:
                raise SystemExit("stopped; run the same command with --resume")
            figures = {"seconds": time.process_time() - began, "measures": {}, **here()}
        left = sorted(training.measures - figures["measures"].keys())
        if left:
            tokenizer = load_tokenizer(folder / "run")
            figures["parameters"] = count_parameters(tokenizer.net)
            figures["bits"] = bits_of_tests(tokenizer)
            figures["codes"] = list(tokenizer.spec.cardinalities)
            for name in left:
                figures["measures"][name] = MEASURES[name](Trained(tokenizer, config, folder / "run"))
            write_json(folder / "figures.json", figures)
    return figures


def figures_in(folder: Path) -> dict[str, Any] | None:
    """What is stored of a training, if it was made here; else None."""
    path = folder / "figures.json"
    figures = read_json(path) if path.is_file() else None
    return figures if figures is not None and same_place(figures) else None


def same_place(figures: Mapping[str, Any]) -> bool:
    """Whether figures are of this machine and torch."""
    return all(figures[name] == here()[name] for name in ("machine", "torch"))


def write_media() -> None:
    """What configs read and is not in the repository: patches, and centers of 2 x 2 pixels of them, a stand-in for a
    pretrained encoder's features."""
    with waited_lock(PATCHES, PURPOSE):
        if not (PATCHES / "test.safetensors").is_file():
            write_patches(PATCHES, side=16)
        path = PATCHES / "centres.safetensors"
        if path.is_file():
            return
        corpus = open_corpus(ArraysCorpus(path=str(PATCHES / "train.safetensors")))
        geometry = ImageGeometry(height=16, width=16, channels=3, rows=8, columns=8)
        every = max(1, len(corpus) // 1500)
        patches = torch.stack([corpus.media(number, geometry) for number in range(0, len(corpus), every)[:1500]])
        squares = patches.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        picked = squares[torch.randperm(len(squares), generator=torch.Generator().manual_seed(0))[:40000]]
        write_safetensors(path, {"centres": kmeans(picked, 4096, 5)[0].contiguous()}, {})


# Results


def stored() -> dict[str, dict[str, Any]]:
    """Key of a row -> what is known of it."""
    return read_json(RESULTS) if RESULTS.is_file() else {}


def updated(results: Mapping[str, dict], out: Path) -> dict[str, dict]:
    """The results with what the trainings in `out` add to unfinished rows; rows that are no more are left out."""
    rows = {}
    for claim in CLAIMS:
        key = claim.key
        old = results.get(key)
        if old is not None and len(old["seeds"]) == claim.seeds:
            rows[key] = old
            continue
        new = row_of(claim, out)
        if new is not None:
            rows[key] = new
        elif old is not None:
            rows[key] = old
    return rows


def row_of(claim: Claim, out: Path) -> dict[str, Any] | None:
    """What the trainings in `out` say of a row: its figures with each seed of which all sides are there; None: none."""
    seeds, sides = [], {side: [] for side in claim.sides}
    for seed in range(claim.seeds):
        found = {side: known(claim, side, seed, out) for side in claim.sides}
        if all(found.values()):
            seeds.append(seed)
            for side, figures in found.items():
                sides[side].append(figures)
    if not seeds:
        return None
    row: dict[str, Any] = {"row": claim.name, "measure": claim.measure, "seeds": seeds}
    for side in claim.sides:
        row[side] = [figures["measures"][claim.measure_of(side)] for figures in sides[side]]
    for name in ("parameters", "bits", "seconds"):
        row[name] = {side: sum(figures[name] for figures in runs) / len(runs) for side, runs in sides.items()}
    commits = sorted({figures["commit"] for runs in sides.values() for figures in runs})
    return row | here() | {"commit": " ".join(commits), "command": COMMAND}


def known(claim: Claim, side: Side, seed: int, out: Path) -> dict[str, Any] | None:
    """The figures of a training with the measure that a row needs, if they are there."""
    found = None
    if needs_found(claim, side):
        own = known(claim, "own", seed, out)
        if own is None:
            return None
        found = own["codes"][0]
    figures = figures_in(out / run_name(claim, side, seed, found))
    return figures if figures is not None and claim.measure_of(side) in figures["measures"] else None


# The cost


def project(claims: Sequence[Claim], out: Path) -> None:
    """Print the sizes of all sides, and what the table costs: from some steps of every training that is not stored."""
    write_media()
    results, costs, total = stored(), {}, 0.0
    print("row                              side      parameters       bits  CPU seconds of a training")
    for claim in claims:
        sizes, of_row = check(claim), 0.0
        for side in claim.sides:
            found = 182 if needs_found(claim, side) else None
            config, name = config_of(claim, side, 0, found), run_name(claim, side, 0, found)
            shared = name in costs
            if not shared:
                done = results.get(claim.key, {}).get("seconds", {}).get(side)
                costs[name] = estimate(config, claim.measure_of(side), out) if done is None else done
                total += claim.seeds * costs[name]
            of_row += claim.seeds * costs[name]
            size = sizes.get(side, size_of(config))
            bits = f"{size.bits:10.4g}" if size.bits is not None else f"{'fitted':>10}"
            note = " (shared)" if shared else ""
            print(f"{claim.name:<32} {side:<9} {size.parameters:>10,} {bits} {costs[name]:8.0f}{note}", flush=True)
        if of_row > HOUR:
            print(f"{claim.name}: {of_row / HOUR:.1f} core-hours, more than the one that a row has")
    print(f"{len(claims)} rows, {len(costs)} different trainings: {total / HOUR:.1f} core-hours with all seeds")


def estimate(config: TokenizerTrainConfig, measure: str, out: Path) -> float:
    """CPU seconds of a training and one measure, from trainings of 5 and 15 steps after one of 1 step that warms up."""
    took, folder = [], out / "project"
    for steps in (1, 5, 15):
        shutil.rmtree(folder, ignore_errors=True)
        began = time.process_time()
        tokenizer = train_tokenizer(shortened(config, steps), folder, progress=False)
        if tokenizer is None:
            raise SystemExit("stopped; run the same command again")
        took.append(time.process_time() - began)
    began = time.process_time()
    MEASURES[measure](Trained(tokenizer, config, folder))
    measured = time.process_time() - began
    shutil.rmtree(folder)
    return took[1] + (took[2] - took[1]) / 10 * (config.total_steps - 5) + measured


def shortened(config: TokenizerTrainConfig, steps: int) -> TokenizerTrainConfig:
    """A config with fewer steps, shared out among its stages."""
    stages = tuple(
        stage.model_copy(update={"steps": max(1, steps * stage.steps // config.total_steps)})
        if stage.kind == "train"
        else stage
        for stage in config.stages
    )
    return config.model_copy(update={"stages": stages})


if __name__ == "__main__":
    main()
