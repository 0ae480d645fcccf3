"""Trainings of language models, and of their tokenizers, that a benchmark compares: each is done once, by any number of
processes, can be stopped at any time, and its figures are stored."""

from __future__ import annotations

import argparse
import hashlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from provenance import here, waited_lock

from tessera.configs.files import read_json, write_json
from tessera.configs.folder_lock import FolderInUse, lock_folder
from tessera.train.common.signals import StopRequest
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.train_step import LMStepReport
from tessera.train.lm.trainer import LMTrainer, train_lm
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, train_tokenizer


@dataclass(frozen=True)
class Training:
    """A model of a comparison."""

    name: str
    """Of its folder, and of its row among the results: different settings, different names."""
    facts: Mapping[str, Any]
    """What identifies it in tables: its kind, seed, steps."""
    configs: Callable[[Path], Iterable[TrainConfig | TokenizerTrainConfig]] = field(compare=False)
    """From its folder: what is trained, one after the other, into run-0, run-1, ...; each is asked for when those
    before it are trained. The last is a language model, which is measured."""
    parts: int = 1
    """How many they are."""

    def model(self, out: Path) -> Path:
        """The model directory, once it is trained."""
        return out / self.name / f"run-{self.parts - 1}" / "model"


class Results:
    """Figures by name of a training, and whatever else is stored, in a JSON file beside the benchmark.

    Args:
        path: the file. out: folder of the trainings; purpose: the benchmark, for messages.
    """

    def __init__(self, path: Path, out: Path, purpose: str):
        self.path, self.out, self.purpose = path, out, purpose

    def stored(self) -> dict[str, Any]:
        """All there is."""
        return read_json(self.path) if self.path.is_file() else {}

    def add(self, **more: Any) -> None:
        """Store more; other processes wait."""
        with waited_lock(self.out / "results", self.purpose):
            write_json(self.path, self.stored() | more)

    def rows(self) -> dict[str, dict[str, Any]]:
        """The figures of trainings that were done on this machine with this torch."""
        found = self.stored().get("rows", {})
        place = {name: here()[name] for name in ("machine", "torch")}
        return {name: row for name, row in found.items() if place.items() <= row.items()}

    def add_row(self, name: str, row: Mapping[str, Any]) -> None:
        """Store the figures of a training."""
        with waited_lock(self.out / "results", self.purpose):
            old = self.stored()
            write_json(self.path, old | {"rows": old.get("rows", {}) | {name: {**row, **here()}}})

    def drop(self, names: Iterable[str]) -> None:
        """Remove the figures of these trainings."""
        with waited_lock(self.out / "results", self.purpose):
            old, gone = self.stored(), set(names)
            rows = {name: row for name, row in old.get("rows", {}).items() if name not in gone}
            write_json(self.path, old | {"rows": rows})


def train_all(
    trainings: Sequence[Training], results: Results, measure: Callable[[Training, Path], Mapping[str, Any]]
) -> None:
    """Train and measure what is missing. What another process is at is left to it, and waited for at the end. What
    fails is reported and does not keep the others from being trained.

    Args:
        measure: figures of a training with this model directory.
    Raises:
        SystemExit: some failed, or the process was stopped.
    """
    waiting = [training for training in trainings if training.name not in results.rows()]
    failed = []
    while waiting:
        busy = []
        for training in waiting:
            with ExitStack() as held:
                try:
                    held.enter_context(lock_folder(results.out / training.name, results.purpose))
                except FolderInUse:
                    busy.append(training)
                    continue
                if training.name in results.rows():
                    continue
                try:
                    row = train_one(training, results, measure)
                except Exception:
                    traceback.print_exc()
                    failed.append(training.name)
                    continue
                results.add_row(training.name, row)
                print(f"{training.name}: {row}", file=sys.stderr, flush=True)
        if len(busy) == len(waiting):
            time.sleep(5)
        waiting = busy
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def train_one(
    training: Training, results: Results, measure: Callable[[Training, Path], Mapping[str, Any]]
) -> dict[str, Any]:
    """Train what is missing of a training, and measure it."""
    folder = results.out / training.name
    spent = [train(config, folder / f"run-{number}") for number, config in enumerate(training.configs(folder))]
    seconds = None if None in spent else sum(filter(None, spent))
    return {**training.facts, "cpu_seconds": seconds, **measure(training, training.model(results.out))}


def train(config: TrainConfig | TokenizerTrainConfig, out: Path) -> float | None:
    """Train, or go on; returns CPU seconds of all parts of a training that was stopped, None if one of them was killed.

    Raises:
        ValueError: what is there was trained with other settings.
    """
    file = out.with_suffix(".seconds.json")
    settings = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
    state = {"seconds": 0.0, "finished": False, "running": False, "settings": settings}
    state |= read_json(file) if file.is_file() else {}
    if state["settings"] != settings:
        raise ValueError(f"{out} was trained with other settings; remove {out.parent} to train it again")
    if state["finished"]:
        return state["seconds"]
    if state["running"]:
        state["seconds"] = None
    write_json(file, state | {"running": True})
    began = time.process_time()
    if isinstance(config, TrainConfig):
        finished = train_lm(config, out, resume=out.is_dir())
    else:
        finished = train_tokenizer(config, out, resume=out.is_dir(), progress=False) is not None
    if state["seconds"] is not None:
        state["seconds"] += time.process_time() - began
    write_json(file, state | {"running": False, "finished": finished})
    if not finished:
        raise SystemExit("stopped; run the same command with --resume")
    return state["seconds"]


def scaled(steps: int) -> list[str]:
    """Settings in proportion to the steps: of a shorter run too the warm-up is a twentieth, and the moving average of
    the weights covers a tenth."""
    return [
        f"train.steps={steps}", f"train.warmup_steps={max(1, round(steps / 20))}",
        f"train.ema={1 - 10 / max(steps, 20):.6f}", f"train.eval_every={max(1, steps // 8)}",
    ]  # fmt: skip


def step_times(results: Results, configs: Mapping[str, Callable[[int], TrainConfig]]) -> None:
    """Store `seconds_per_step` of the configs, unless this machine has done so."""
    at = results.stored().get("seconds_per_step_at", {})
    if any(at.get(name) != here()[name] for name in ("machine", "torch")):
        results.add(seconds_per_step=seconds_per_step(configs), seconds_per_step_at=here())


def seconds_per_step(
    configs: Mapping[str, Callable[[int], TrainConfig]], steps: int = 12, skipped: int = 2, turns: int = 6
) -> dict[str, float]:
    """CPU seconds of a training step by name: runs of a few steps, turn by turn, every other turn in reverse; the
    shortest time of each step, whose batch is the same in every turn, counts, and their mean is returned. Other
    programs, and what ran before, make steps longer, and nothing makes them shorter.

    Args:
        configs: from a number of steps, a config without evaluation.
        steps: of a run. skipped: the first of them, which start slowly. turns: runs of each.
    """
    took: dict[str, list[list[float]]] = {name: [] for name in configs}
    train_step = LMTrainer.train_step

    def timed(self: LMTrainer, stop: StopRequest) -> LMStepReport:
        began = time.process_time()
        report = train_step(self, stop)
        seconds.append(time.process_time() - began)
        return report

    with patch.object(LMTrainer, "train_step", timed):
        for turn in range(turns):
            for name, config in list(configs.items())[:: 1 if turn % 2 == 0 else -1]:
                seconds: list[float] = []
                with tempfile.TemporaryDirectory() as folder:
                    if not train_lm(config(steps), Path(folder) / "run"):
                        raise SystemExit("stopped; run the same command with --resume")
                took[name].append(seconds[skipped:])
    return {name: statistics.mean(map(min, zip(*each, strict=True))) for name, each in took.items()}


def cpu_minutes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Their mean, for tables, without those that were killed in between."""
    known = [row["cpu_seconds"] / 60 for row in rows if row["cpu_seconds"] is not None]
    return f"{sum(known) / len(known):.0f}" if known else ""


def in_processes(count: int, script: str, arguments: Sequence[str]) -> int:
    """Run a script in so many processes at once; the largest of their exit codes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the processes end, too
    running = [subprocess.Popen([sys.executable, script, *arguments]) for _ in range(count)]
    try:
        return max(process.wait() for process in running)
    finally:
        for process in running:
            process.terminate()


def run_comparison(
    doc: str | None,
    script: str,
    out: str,
    measure: Callable[[Results], None],
    table: Callable[[Mapping[str, Any]], str],
    speed: Callable[[Results], None] | None = None,
) -> None:
    """The command line of a comparison.

    Args:
        doc: its description. script: its file, beside which the results are stored. out: default folder of trainings.
        measure: trains and measures what is missing. table: the stored results as Markdown. speed: adds the speed of
            generation.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--resume", action="store_true", help="train and measure what is missing")
    what.add_argument("--table", action="store_true", help="print the stored results as Markdown")
    if speed is not None:
        what.add_argument("--speed", action="store_true", help="measure the speed of generation of what is trained")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=Path(out), help="data and trainings")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(Path(script).with_suffix(".json"), args.out, f"benchmarks/{Path(script).name}")
    if args.table:
        print(table(results.stored()))
    elif not args.resume and speed is not None:
        speed(results)
        print(table(results.stored()))
    elif args.workers > 1:
        sys.exit(in_processes(args.workers, script, ["--resume", "--out", str(args.out)]))
    else:
        measure(results)
