"""`tessera train`: from shards and a config to a model directory.

    OUT/config.json      the resolved config                 OUT/steps/      checkpoints (train/common/checkpoint.py)
    OUT/metrics.jsonl    losses (train/common/metrics.py)    OUT/samples/    generated during training
    OUT/text/            text tokenizer                      OUT/model/      the finished model, then OUT/FINISHED
    OUT/text_encoder/    text encoder, if the lm has one

The loop is train/common/trainer.py. Every random choice of a step depends only on (seed, step, micro-batch), so a
checkpoint needs only the step number, the weights and the optimizer state for a resumed run to equal an uninterrupted
one.
"""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configs.files import write_json
from ...configs.folder_lock import is_empty
from ...configs.printable import say
from ...lm.attention.registry import explain
from ...lm.checkpoints.model_directory import LoadedModel
from ...lm.models.next_patch import check_patches
from ..common.batch_sampler import Cut, check_batch, cut_batch
from ..common.checkpoint import Checkpoints, check_pickles
from ..common.disk_space import check_disk_space
from ..common.progress import Throughput
from ..common.run_folder import open_run
from ..common.run_state import micro_batch_of
from ..common.signals import StopRequest
from ..common.trainer import Trainer
from ..distributed.process_group import ProcessGroup, TrainingFailed, join_world
from ..engines.auto import choose_engine
from ..engines.base import Engine
from ..engines.ema import WeightAverage
from ..engines.lr_schedule import describe_new_end
from ..engines.state_files import EngineState
from ..engines.torch_engine import TorchEngine
from .config import TrainConfig
from .evaluate import evaluate_tasks
from .export import export_lm
from .objective import Objective
from .preflight import (
    EXPORT_BYTES,
    Rehearse,
    check_evaluation,
    check_exportable,
    check_generation,
    check_memory,
    checkpoint_bytes,
    evaluates,
    notes,
)
from .run_state import RunState, test_loss
from .samples import Sample, make_request
from .setup import ENCODER_FOLDER, open_parts
from .train_step import LMStepper, LMStepReport

__all__ = ["LMTrainer", "TrainingFailed", "check_out", "cut_like", "train_lm"]


def train_lm(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    sample: Sample | None = None,
    command: str = "",
    rehearse: Rehearse | None = None,
) -> bool:
    """Train a language model; every process of a run calls this.

    Args:
        config: the whole run.
        out: folder of the run.
        resume: continue from the newest checkpoint in `out`, or start from the beginning if there is none.
        sample: generates samples during training, in the first process.
        command: command that started the run, for the model card and for the message on how to resume.
        rehearse: tests the requests for `sample` and the default generation of the exported model, in the first process
            before the first step.
    Returns:
        True when finished, False if stopped by Ctrl-C or SIGTERM after saving.
    Raises:
        FileExistsError: `out` is not empty and `resume` is not set.
        ValueError: config, data and checkpoint do not match, or another process trains in `out`.
        TrainingFailed: non-finite losses, `train.max_consecutive_bad` times in a row.
    """

    def prepare() -> None:
        check_out(out, resume)
        shutil.rmtree(out / ".model.tmp", ignore_errors=True)  # left by a killed export (export.py)

    named = command or "tessera train"
    below = ("text", ENCODER_FOLDER, "samples/*")
    with open_run(out, config.device, resume=resume, command=named, below=below, prepare=prepare) as (world, found):
        trainer = LMTrainer(config, out, world, sample, command, started=found)
        if found is not None:
            trainer.resume(found)
        trainer.check(rehearse)
        return trainer.run()


def check_out(out: Path, resume: bool) -> None:
    """Raise FileExistsError if a new run would write into a non-empty folder."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: is an existing file; choose a folder with --out")
    if not resume and out.exists() and not is_empty(out):
        raise FileExistsError(f"{out} is not empty; resume that run with --resume, or choose another folder with --out")


class LMTrainer(Trainer[LMStepReport, RunState]):
    """One run in one process; see `train_lm`.

    Args:
        started: checkpoint that `resume` will load; the batch is split as there.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        world: ProcessGroup,
        sample: Sample | None = None,
        command: str = "",
        started: Path | None = None,
    ):
        settings, kept = config.train, config.train.kept
        checkpoints = Checkpoints(out / "steps", world, kept.last, kept.best, test_loss)
        state = RunState(command=command)
        super().__init__(out, world, settings, settings.steps, checkpoints, state, command, show=world.is_first)
        self.sample = sample
        bad = out / "metrics.jsonl"
        self.advice = f'look at the items in the lines "bad" of {bad}, or start another run with a lower train.lr'
        config = config.model_copy(update={"engine": choose_engine(config.engine, out / "steps", world)})
        if started is None:
            self.cut = Cut(check_batch(settings.batch, settings.micro_batch, world.size), 1)
        else:
            self.cut = cut_like(started, config, world)
        self.micro = self.cut.micro
        self.parts = open_parts(config, out, world, started)
        self.config = config.model_copy(update={"lm": config.lm.explicit(self.parts.spec.num_codebooks)})
        check_memory(config, self.parts, self.micro, world.device)
        self.start_notes: list[str] = []
        """What comes from init.from; shown once nothing is wrong."""
        made = self.parts.first_lm(self.config, started, self.start_notes)
        self.average = WeightAverage(made.to(world.device), settings.ema)
        self._make_engine(started)
        self.throughput = Throughput()

    def _make_engine(self, started: Path | None) -> None:
        """Build the model in training, its engine, and what runs its steps."""
        config, settings, world = self.config, self.config.train, self.world
        lm = self.parts.first_lm(config, started).to(world.device)
        self.num_parameters = lm.num_parameters
        self.num_trained = sum(parameter.numel() for parameter in lm.parameters() if parameter.requires_grad)
        self.loss_parts = lm.loss_parts
        check_patches(lm.arrangement, self.parts.spec.geometry, settings.patches)
        packed = config.data.packing.kind != "padded"
        dtype = getattr(torch, settings.dtype)
        self.attention = explain(config.lm.attention, world.device, dtype, config.lm.head_width, packed)
        objective = Objective(lm, settings.dtype, settings.label_smoothing, packed)
        self.engine = make_engine(config, objective, world, settings.batch // self.cut.size // world.size)
        self.stepper = LMStepper(config, self.parts.items, world, self.cut, lm, self.engine)

    def resume(self, found: Path) -> None:
        """Resume from a good checkpoint."""
        self.state = RunState.load(found, self.config, self.parts, self.world, self.micro)
        self.state.command = self.command
        check_pickles(found)
        self.engine.load(found)
        if self.average.decay:
            self.average.load(found)
        if self.world.is_first:
            say(f"resuming from {found}")
            self._note_new_end()

    def check(self, rehearse: Rehearse | None = None) -> None:
        """Check for errors that would end the run later (preflight.py); all processes call this, before `run`."""
        config, parts, lm = self.config, self.parts, self.average.model

        def check_all() -> None:
            check_evaluation(config, parts, lm, self.micro)
            loaded = check_exportable(config, parts, lm)
            if self.world.is_first:
                kept, size = config.train.kept, checkpoint_bytes(config, self.num_parameters, self.num_trained)
                model = EXPORT_BYTES[config.export.dtype] * self.num_parameters
                model += 0 if parts.text_encoder is None else 8 * parts.text_encoder.num_parameters  # here and there
                check_disk_space(self.out, size, model, kept.last + (kept.best if evaluates(config) else 0))
                for note in notes(config):
                    say(f"note: {note}")
                if rehearse is not None:
                    check_generation(config, parts, loaded, rehearse)
                for note in self.start_notes:
                    say(f"note: {note}")

        self.world.together(check_all)

    # The run: see Trainer

    def open_folder(self) -> None:
        """See Trainer."""
        if self.state.step < self.total_steps:
            (self.out / "FINISHED").unlink(missing_ok=True)
        write_json(self.out / "config.json", self.config.model_dump(mode="json"))
        if self.parts.text is not None:
            (self.out / "text").mkdir(exist_ok=True)
            self.parts.text.save(self.out / "text")
        encoder, folder = self.parts.text_encoder, self.out / ENCODER_FOLDER
        if encoder is not None and not (folder / "config.json").is_file():
            encoder.save(folder)

    def introduce(self) -> None:
        """See Trainer."""
        config, items = self.config, self.parts.items
        assert config.engine.kind != "auto"
        because = f" ({config.engine.because})" if config.engine.because else ""
        left_out = f" ({items.left_out} longer ones left out)" if items.left_out else ""
        left_out += f" ({items.skipped} without label or text left out)" if items.skipped else ""
        learn = "" if self.num_trained == self.num_parameters else f" ({self.num_trained:,} of them learn)"
        self.progress.note(
            f"{config.name}: {self.num_parameters:,} parameters{learn}, {len(items)} items{left_out}, "
            f"{config.engine.kind} engine{because}, {self.world.size} x {self.world.device.type}, "
            f"{config.train.dtype}, to {self.out}"
        )
        self.progress.note(f"attention: {self.attention.name} ({self.attention.reason})")
        self.throughput.restart()

    def train_step(self, stop: StopRequest) -> LMStepReport:
        """See Trainer."""
        report = self.stepper.step(self.state.step, stop)
        self.throughput.add(report.num_tokens)
        return report

    def accept(self, report: LMStepReport) -> None:
        """See Trainer."""
        self.state.losses["train"] = {"step": self.state.step, **self._losses(report.losses)}
        if self.average.decay:
            with self.engine.weights() as weights:
                self.average.update(weights)

    def describe_bad(self, report: LMStepReport) -> dict[str, Any]:
        """See Trainer."""
        items = self.parts.items
        ids = [items.shards.item(int(items.numbers[row])).id for row in report.rows]
        return {**self._measured(report), "items": ids}

    def log(self, report: LMStepReport) -> None:
        """See Trainer."""
        rate = self.throughput.rate()
        self.throughput.restart()
        measured = self._measured(report)
        losses = " ".join(f"{value:.2f}" for value in report.losses)
        self.progress.report(
            self.state.step, f"loss {measured['loss']:.3f} [{losses}] {rate:,.0f} tokens/s", self.seconds_left
        )
        epoch = self.stepper.sampler.epoch(self.state.step)
        more = {"tokens_per_second": rate, "epoch": epoch, "skipped": self.state.skipped}
        self.write_metrics("train", {**measured, **more})

    def evaluate_if_due(self, last: bool) -> None:
        """See Trainer."""
        settings = self.config.train
        if self.is_due(settings.eval_every) and not last:
            self.evaluate()
        if self.is_due(settings.sample_every) or (last and settings.sample_every is not None):
            self.generate_samples()

    def evaluate(self) -> None:
        """Evaluate the averaged weights on the test shards."""
        if self.parts.test is None:
            return
        self._refresh_average()
        found, tasks = evaluate_tasks(
            self.average.model, self.parts.test, self.micro, self.world, self.config.train.dtype
        )
        losses = {**self._losses(found.tolist()), **{f"loss_{task}": loss for task, loss in tasks.items()}}
        self.write_metrics("test", losses)
        each = " ".join(f"{value:.3f}" for value in found.tolist())
        each += "".join(f", {task} {loss:.3f}" for task, loss in tasks.items())
        finite = math.isfinite(losses["loss"])
        self.is_best = finite and self.checkpoints.is_best(losses["loss"])
        best = ", among the best so far" if self.is_best else ""
        self.progress.note(f"step {self.state.step}: test loss {losses['loss']:.4f} [{each}]{best}")
        self.state.losses.pop("test", None)
        if finite:
            self.state.losses["test"] = {"step": self.state.step, **losses}
        self.throughput.restart()

    def generate_samples(self) -> None:
        """Call the sampling callable to write into samples/step-N."""
        self._refresh_average()
        self.world.together(lambda: self._sample() if self.world.is_first else None)
        self.throughput.restart()

    def save(self) -> None:
        """Write a checkpoint; all processes call this."""
        super().save()
        self.throughput.restart()

    def collect(self) -> tuple[Callable[[Path], None], int]:
        """See Trainer."""
        state = self.engine.collect()
        if state is not None:
            state = replace(state, weights=self._saved_weights(state.weights))
        num_bytes = 0 if state is None else state.num_bytes + self.average.num_bytes
        return partial(self._write, state), num_bytes

    def stopped(self) -> str:
        """See Trainer."""
        command = f"{self.command or 'tessera train'} --resume"
        return (
            f"stopped after step {self.state.step} and saved; resume with: {command}\n"
            f"or export the current model with: tessera export {shlex.quote(str(self.out))}"
        )

    def finish(self) -> None:
        """Evaluate, save and export the model directory, then write FINISHED."""
        state = self.state
        if state.losses.get("test", {}).get("step") != state.step:
            self.evaluate()
        self.save()
        self._refresh_average()
        self.world.together(lambda: self._export() if self.world.is_first else None)
        self.progress.note(f"finished: {self.out / 'model'}")

    # Helpers

    def _note_new_end(self) -> None:
        """Report a changed number of steps."""
        settings, planned = self.config.train, self.state.planned
        if planned not in (None, settings.steps):
            shape = {"peak": settings.lr, "warmup_steps": settings.warmup_steps, "min_ratio": settings.min_lr_ratio}
            say(describe_new_end("train.steps", self.state.step, planned, settings.steps, **shape))

    def _losses(self, values: list[float]) -> dict[str, Any]:
        """Losses in the format of metrics.jsonl, from one value per codebook (or scale)."""
        return {"loss": self.loss_parts.mean(values), **self.loss_parts.named(values, "loss_")}

    def _measured(self, report: LMStepReport) -> dict[str, Any]:
        """What a step measured, in the format of metrics.jsonl."""
        return {**self._losses(report.losses), "lr": report.info.lr, "grad_norm": report.info.grad_norm}

    def _refresh_average(self) -> None:
        """Update `average.model`, which is evaluated, sampled and exported; all processes call this."""
        if self.average.updates == 0:  # gathering the weights of all processes takes time
            with self.engine.weights(exact=True) as weights:
                self.average.refresh(weights)

    def _saved_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a checkpoint: those that learn, and the others unless they are those of init.from."""
        learning = {name: weights[name] for name in self.average.learning}
        if self.config.lora is not None:
            return learning
        return {name: learning.get(name, own) for name, own in self.average.model.named_parameters()}

    def _loaded_model(self) -> LoadedModel:
        return self.parts.loaded(self.average.model, self.config.generation)

    def _sample(self) -> None:
        if self.sample is not None:
            folder = self.out / "samples" / f"step-{self.state.step:08}"
            count, seed = self.config.train.samples, self.config.seed
            folder.mkdir(parents=True, exist_ok=True)
            self.sample(make_request(self._loaded_model(), self.parts, folder, count, seed))

    def _write(self, state: EngineState | None, folder: Path) -> None:
        """Write the files of a checkpoint; called in the first process."""
        assert state is not None
        state.save(folder)
        if self.average.decay:
            self.average.save(folder)
        self.state.save(folder, self.config, self.parts, self.world, self.micro, self.attention)

    def _export(self) -> None:
        state = self.state
        try:
            export_lm(self.average.model, self.parts, self.config, self.out / "model", state)
        except ValueError as error:
            again = f"tessera export {shlex.quote(str(self.out))} --set export.dtype=float32"
            raise ValueError(f"{error}; the run is saved and can be exported with: {again}") from None
        write_json(self.out / "FINISHED", {"step": state.step, "losses": state.losses, "command": state.command})


def cut_like(found: Path, config: TrainConfig, world: ProcessGroup) -> Cut:
    """Split of the batch that keeps the micro-batches of a checkpoint.

    If the processes cannot share them and their noise cannot be divided (packed rows, or a depth head trained on a
    share of the steps, or on those of a text stream that have frames), they become smaller, with a note: the noise then
    differs.
    """
    settings = config.train
    micro = micro_batch_of(found)
    cut = cut_batch(settings.batch, micro, world.size)
    head = config.lm.head
    some_steps = getattr(head, "trained_share", 1) != 1 or (config.lm.text_stream and getattr(head, "dropout", 0))
    whole_noise = config.data.packing.kind == "padded" and not some_steps
    if cut.parts == 1 or whole_noise:
        return cut
    if world.is_first:
        print(
            f"note: this run has micro-batches of {micro}, which {world.size} processes cannot share; it continues "
            f"with {cut.size}: the same batches, but different random numbers (dropout and so on)",
            file=sys.stderr,
        )
    return Cut(cut.size, 1)


def make_engine(config: TrainConfig, objective: Objective, world: ProcessGroup, micro_steps: int) -> Engine:
    """Build the engine of a config, after kind auto is resolved."""
    if config.engine.kind == "deepspeed":
        from ..engines.deepspeed_engine import DeepSpeedEngine

        join_world(config.device, always=True)
        return DeepSpeedEngine(objective, config.engine, config.train, world, micro_steps)
    return TorchEngine(objective, config.train, world, micro_steps)
