"""`tessera train`: from shards and a config to a model directory.

    OUT/config.json      the resolved config            OUT/steps/      checkpoints (checkpoint.py)
    OUT/metrics.jsonl    losses (metrics.py)            OUT/samples/    generated while training
    OUT/text/            text tokenizer                 OUT/model/      the finished model, then OUT/FINISHED

Every random choice of a step depends on (seed, step, micro-batch) alone, so nothing but the step number, the weights and the
optimizer's state has to be kept for a resumed run to equal one that was left alone.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..lm.weights import LoadedModel, save_model
from ..tokenize.config import ConfigError
from ..tokenize.files import fsync_dir, read_json, write_json
from .card import git_commit, model_card
from .checkpoint import Checkpoints, check_pickles
from .data import Items, batches_by_length, data_fingerprint
from .ema import WeightAverage
from .engine import Engine, TorchEngine
from .lm_config import TrainConfig, check_resumable
from .metrics import Metrics, Progress
from .objective import Objective, TermCounter
from .parts import open_parts
from .sampler import Sampler, check_batch, micro_batches, mix
from .stop import StopRequest
from .world import World, join_world, leave_world


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says what happened and what is left."""


@dataclass(frozen=True)
class SampleRequest:
    """What the sampling callable is given; it writes what it likes into `folder`."""

    model: LoadedModel
    folder: Path
    labels: list[str] | None
    """Labels to generate, None for a model without a label condition."""
    texts: list[str] | None
    """Texts to generate, None for a model without a text condition."""
    count: int
    """Samples; as many as there are labels or texts."""
    seed: int


Sample = Callable[[SampleRequest], None]


def train_lm(
    config: TrainConfig, out: Path, *, resume: bool = False, sample: Sample | None = None, command: str = ""
) -> bool:
    """Train a language model; every process of a run calls this.

    Args:
        config: the whole run.
        out: folder of the run.
        resume: go on with the newest checkpoint in `out`.
        sample: generates while training, in the first process.
        command: for the model card.
    Returns:
        True when finished, False when stopped by Ctrl-C or SIGTERM after saving.
    Raises:
        FileExistsError: `out` holds something and `resume` is not set. ValueError: config, data or checkpoint do not fit.
        TrainingFailed: losses that are not finite, `train.max_consecutive_bad` times in a row.
    """
    world = join_world(config.device, always=config.engine.kind == "deepspeed")
    try:
        world.together(lambda: check_out(out, resume))
        world.barrier()  # nobody writes before all have looked
        trainer = LMTrainer(config, out, world, sample, command)
        return trainer.run(resume)
    finally:
        leave_world(world)


def check_out(out: Path, resume: bool) -> None:
    """Raise FileExistsError when a new run would write into a folder that is in use."""
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; go on with that run by --resume, or name another folder with --out")


class LMTrainer:
    """One run in one process; see `train_lm`."""

    def __init__(self, config: TrainConfig, out: Path, world: World, sample: Sample | None = None, command: str = ""):
        self.config, self.out, self.world, self.sample, self.command = config, out, world, sample, command
        settings = config.train
        self.micro = check_batch(settings.batch, settings.micro_batch, world.size)
        self.parts = open_parts(config, out, world)
        self.data_fingerprint = data_fingerprint(self.parts.items)
        self.sampler = Sampler(self.parts.items.lengths, settings.batch, config.seed, config.data.pool_batches)
        self.average = WeightAverage(self.parts.make_lm(config.seed).to(world.device), settings.ema)
        objective = Objective(
            self.parts.make_lm(config.seed).to(world.device), settings.dtype, settings.label_smoothing
        )
        self.count_terms = TermCounter(objective.lm.arrangement)
        self.parameters = sum(parameter.numel() for parameter in objective.lm.parameters())
        self.engine = make_engine(config, objective, world, settings.batch // self.micro // world.size)
        self.checkpoints = Checkpoints(out / "steps", world, settings.keep_last)
        self.step = self.skipped = self.consecutive_bad = 0
        self.losses: dict[str, dict[str, Any]] = {}  # the latest of each split, for the model card

    # The main flow

    def run(self, resume: bool) -> bool:
        """Train to the end or to a signal; see `train_lm`."""
        if resume:
            self.resume()
        settings, world = self.config.train, self.world
        if world.is_first:
            self.out.mkdir(parents=True, exist_ok=True)
            if self.step < settings.steps:
                (self.out / "FINISHED").unlink(missing_ok=True)
            write_json(self.out / "config.json", self.config.model_dump(mode="json"))
        self.metrics = Metrics(self.out, self.step) if world.is_first else None
        self.progress = Progress(settings.steps, self.step, show=world.is_first)
        self._say_what_it_is()
        started, first = time.monotonic(), self.step
        self._restart_clock()
        try:
            with StopRequest() as stop:
                while self.step < settings.steps:
                    stopping = self._train_step(stop)
                    if self._due(settings.log_every) or self.step == settings.steps:
                        self._log((settings.steps - self.step) * (time.monotonic() - started) / (self.step - first))
                    if self._due(settings.eval_every) and self.step < settings.steps:
                        self.evaluate()
                    if self._due(settings.sample_every):
                        self.generate_samples()
                    if stopping or (self._due(settings.save_every) and self.step < settings.steps):
                        self.save()
                    if stopping and self.step < settings.steps:
                        self.progress.note(
                            f"stopped after step {self.step} and saved; go on with: {self.command or 'tessera train'} --resume"
                        )
                        return False
                self.finish()
                return True
        finally:
            self.progress.close()
            if self.metrics is not None:
                self.metrics.close()

    def _train_step(self, stop: StopRequest) -> bool:
        """One optimizer step; returns whether any process was asked to stop."""
        rows = self.sampler.batch(self.step)
        items, device = self.parts.items, self.world.device
        totals = self.count_terms(items.lengths[rows])
        num_codebooks = len(totals)
        gathered = torch.zeros(num_codebooks + 1, dtype=torch.float64, device=device)
        for number, micro in micro_batches(rows, self.micro, self.world.rank, self.world.size):
            batch = items.batch(micro).to(device)
            torch.manual_seed(mix(self.config.seed, 1, self.step, number))  # dropout, of layers and of conditions
            loss, sums, _ = self.engine.model(batch.codes, batch.lengths, batch.conditions, totals)
            self.engine.backward(loss)
            gathered[:num_codebooks] += sums
        gathered[num_codebooks] = float(stop.asked)
        self.world.add(gathered)
        info = self.engine.step()
        self.step += 1
        per_codebook = (gathered[:num_codebooks].cpu() / totals).tolist()
        self.latest = {
            "loss": sum(per_codebook) / num_codebooks,
            "loss_per_codebook": per_codebook,
            "lr": info.lr,
            "grad_norm": info.grad_norm,
        }
        self._tokens += float(totals.sum())
        self.progress.advance()
        if info.skipped:
            self._count_bad(rows)
        else:
            self.consecutive_bad = 0
            if self.average.decay:
                with self.engine.weights() as weights:
                    self.average.update(weights)
        return bool(gathered[num_codebooks] > 0)

    def finish(self) -> None:
        """Evaluate, save, export the model directory, and only then write FINISHED."""
        if self.losses.get("test", {}).get("step") != self.step:
            self.evaluate()
        self.save()
        if self.config.train.sample_every is not None and self.step % self.config.train.sample_every:
            self.generate_samples()
        self.export()
        self.progress.note(f"finished: {self.out / 'model'}")

    # Its parts

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _count_bad(self, rows: Any) -> None:
        """A step that changed nothing: note its items, and stop after too many in a row."""
        self.skipped += 1
        self.consecutive_bad += 1
        limit = self.config.train.max_consecutive_bad
        if self.metrics is not None:
            ids = [self.parts.items.shards.item(int(self.parts.items.numbers[row])).id for row in rows]
            self.metrics.write(self.step, "bad", {**self.latest, "items": ids})
        self.progress.note(
            f"step {self.step}: the loss or its gradient is not finite; the step was skipped ({self.consecutive_bad} of {limit})"
        )
        if self.consecutive_bad >= limit:
            raise TrainingFailed(
                f"the loss or its gradient was not finite in {limit} steps in a row, up to step {self.step}; the weights are those of step "
                f'{self.step - limit}; look at the items in the lines "bad" of {self.out / "metrics.jsonl"}, or start another run with a lower train.lr'
            )

    def _restart_clock(self) -> None:
        self._tokens, self._clock = 0.0, time.monotonic()

    def _log(self, seconds_left: float) -> None:
        rate = self._tokens / max(1e-9, time.monotonic() - self._clock)
        self._restart_clock()
        self.losses["train"] = {"step": self.step, **self.latest}
        self.progress.report(self.step, self.latest["loss"], self.latest["loss_per_codebook"], rate, seconds_left)
        if self.metrics is not None:
            values = {
                **self.latest,
                "tokens_per_second": rate,
                "epoch": self.sampler.epoch(self.step),
                "skipped": self.skipped,
            }
            self.metrics.write(self.step, "train", values)

    def averaged(self) -> torch.nn.Module:
        """The model to evaluate, sample and export; all processes call this."""
        if self.average.updates == 0:  # collecting the weights of all processes costs time
            with self.engine.weights(exact=True) as weights:
                self.average.refresh(weights)
        return self.average.model

    def evaluate(self) -> None:
        """Loss of the averaged weights on the test shards, each process its share of the batches."""
        if self.parts.test is None:
            return
        sums, counts = evaluate_loss(self.averaged(), self.parts.test, self.micro, self.world, self.config.train.dtype)
        per_codebook = (sums / counts).tolist()
        self.losses["test"] = {
            "step": self.step,
            "loss": sum(per_codebook) / len(per_codebook),
            "loss_per_codebook": per_codebook,
        }
        if self.metrics is not None:
            self.metrics.write(
                self.step, "test", {name: value for name, value in self.losses["test"].items() if name != "step"}
            )
        losses = " ".join(f"{value:.3f}" for value in per_codebook)
        self.progress.note(f"step {self.step}: test loss {self.losses['test']['loss']:.4f} [{losses}]")
        self._restart_clock()

    def generate_samples(self) -> None:
        """Let the sampling callable write into samples/step-N."""
        self.averaged()
        self.world.together(lambda: self._sample() if self.world.is_first and self.sample is not None else None)
        self._restart_clock()

    def _sample(self) -> None:
        assert self.sample is not None
        count = self.config.train.samples
        labels = (
            [self.parts.labels[number % len(self.parts.labels)] for number in range(count)]
            if self.parts.labels
            else None
        )
        texts = None
        if self.parts.text is not None:
            source = self.parts.test or self.parts.items
            texts = [str(source.shards.item(int(source.numbers[row % len(source)])).text) for row in range(count)]
        folder = self.out / "samples" / f"step-{self.step:08}"
        folder.mkdir(parents=True, exist_ok=True)
        self.sample(SampleRequest(self._loaded_model(), folder, labels, texts, count, seed=self.config.seed))

    def _loaded_model(self) -> LoadedModel:
        parts = self.parts
        return LoadedModel(
            lm=self.average.model,
            tokenizer=parts.tokenizer,
            text=parts.text,
            labels=parts.labels,
            defaults=self.config.generation,
        )

    def export(self) -> None:
        """Write the model directory, whole or not at all, then FINISHED."""
        self.averaged()
        self.world.together(lambda: self._export() if self.world.is_first else None)

    def _export(self) -> None:
        stage, final = self.out / ".model.tmp", self.out / "model"
        shutil.rmtree(stage, ignore_errors=True)
        card = model_card(
            self.config,
            self.parts,
            command=self.command,
            step=self.step,
            losses=self.losses,
            parameters=self.parameters,
        )
        parts = self.parts
        save_model(
            stage,
            self.average.model,
            parts.tokenizer,
            parts.text,
            parts.labels,
            self.config.generation,
            card,
            dtype=self.config.export.dtype,
        )
        shutil.rmtree(final, ignore_errors=True)
        stage.rename(final)
        fsync_dir(self.out)
        write_json(self.out / "FINISHED", {"step": self.step, "losses": self.losses})

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint; all processes call this."""
        self.checkpoints.save(self.step, self._write)
        self._restart_clock()

    def _write(self, folder: Path) -> None:
        self.engine.save(folder)
        if not self.world.is_first:
            return
        if self.average.decay:
            self.average.save(folder)
        state = {
            "tessera": __version__,
            "git_commit": git_commit(),
            "step": self.step,
            "sampler": {"seed": self.sampler.seed, "step": self.step},
            "skipped": self.skipped,
            "consecutive_bad": self.consecutive_bad,
            "processes": self.world.size,
            "tokenizer": self.parts.spec.fingerprint,
            "data": self.data_fingerprint,
            "losses": self.losses,
            "config": self.config.model_dump(mode="json"),
        }
        write_json(folder / "run.json", state)

    def resume(self) -> None:
        """Go on from the newest good checkpoint; from the beginning when there is none."""
        found = self.checkpoints.newest()
        if found is None:
            if self.world.is_first:
                print(f"note: no checkpoint in {self.checkpoints.folder}, starting at the beginning", file=sys.stderr)
            return
        state = read_json(found / "run.json")
        check_resumable(state["config"], self.config, str(found))
        if state["tokenizer"] != self.parts.spec.fingerprint or state["data"] != self.data_fingerprint:
            raise ConfigError(
                f"data.shards: {self.config.data.shards} is not what {found} was trained on; "
                "put the old shards back, or start another run with another --out"
            )
        if state["processes"] != self.world.size and self.world.is_first:
            print(
                f"note: saved by {state['processes']} processes, going on with {self.world.size}; losses will agree up to rounding",
                file=sys.stderr,
            )
        check_pickles(found)
        self.engine.load(found)
        if self.average.decay:
            self.average.load(found)
        self.step, self.skipped, self.consecutive_bad = state["step"], state["skipped"], state["consecutive_bad"]
        self.losses = state["losses"]
        if self.world.is_first:
            print(f"going on from {found}", file=sys.stderr)

    def _say_what_it_is(self) -> None:
        items = self.parts.items
        left_out = f" ({items.left_out} longer ones left out)" if items.left_out else ""
        self.progress.note(
            f"{self.config.name}: {self.parameters:,} parameters, {len(items)} items{left_out}, {self.config.engine.kind} engine, "
            f"{self.world.size} x {self.world.device.type}, {self.config.train.dtype}, to {self.out}"
        )


def make_engine(config: TrainConfig, objective: Objective, world: World, micro_steps: int) -> Engine:
    """The engine that the config names."""
    if config.engine.kind == "deepspeed":
        from .deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(objective, config.engine, config.train, world, micro_steps)
    return TorchEngine(objective, config.train, world, micro_steps)


@torch.no_grad()
def evaluate_loss(
    lm: torch.nn.Module, items: Items, batch: int, world: World, dtype: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Sums of the loss terms of all items [K] and their numbers [K] (float64, on the CPU); all processes call this."""
    objective = Objective(lm, dtype)  # type: ignore[arg-type]
    sums = counts = 0.0
    for rows in batches_by_length(items.lengths, batch)[world.rank :: world.size]:
        found = items.batch(rows).to(world.device)
        _, here, number = objective(found.codes, found.lengths, found.conditions)
        sums, counts = sums + here, counts + number.double()
    num_codebooks = items.shards.spec.num_codebooks
    both = torch.zeros(2, num_codebooks, dtype=torch.float64, device=world.device)
    both[0] += sums
    both[1] += counts
    world.add(both)
    sums, counts = both.cpu()
    assert not math.isnan(float(counts.sum()))
    return sums, counts
