"""`tessera train`: from shards and a config to a model directory.

    OUT/config.json      the resolved config                 OUT/steps/      checkpoints (train/common/checkpoint.py)
    OUT/metrics.jsonl    losses (train/common/metrics.py)    OUT/samples/    generated during training
    OUT/text/            text tokenizer                      OUT/model/      the finished model, then OUT/FINISHED

Every random choice of a step depends only on (seed, step, micro-batch), so a checkpoint needs only the step number, the
weights and the optimizer state for a resumed run to equal an uninterrupted one.
"""

from __future__ import annotations

import math
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...configs.files import write_json
from ...configs.folder_lock import is_empty, lock_folder
from ...configs.printable import say
from ...lm.attention.registry import explain
from ...lm.checkpoints.model_directory import LoadedModel
from ...lm.models.next_patch import check_patches, side_at
from ...lm.ops.row_rng import part_of_rows
from ...lm.patterns.pattern import CodebookPattern
from ..common.batch_sampler import Cut, Sampler, check_batch, cut_batch, mix, pieces_of
from ..common.checkpoint import Checkpoints, check_pickles
from ..common.memory_check import check_batch_fits, check_weights_fit, count_numbers
from ..common.metrics import Metrics, Progress
from ..common.signals import StopRequest
from ..distributed.process_group import ONE_PROCESS, ProcessGroup, TrainingFailed, join_world, run_in
from ..engines.auto import choose_engine
from ..engines.base import Engine, StepInfo
from ..engines.ema import WeightAverage
from ..engines.lr_schedule import describe_new_end
from ..engines.state_files import EngineState
from ..engines.torch_engine import TorchEngine
from .config import TrainConfig
from .evaluate import evaluate_loss
from .export import export_lm
from .objective import Objective, TermCounter
from .preflight import (
    EXPORT_BYTES,
    Rehearse,
    check_evaluation,
    check_exportable,
    check_generation,
    check_room,
    checkpoint_bytes,
    evaluates,
    notes,
)
from .run_state import RunState, micro_batch_of, test_loss
from .samples import Sample, make_request
from .sequence_packing import BestFitConfig, PackedSampler
from .setup import open_parts


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
    world = join_world(config.device)
    with run_in(world), ExitStack() as held:
        world.together(lambda: _take(out, resume, command, held) if world.is_first else None)
        found = find_checkpoint(out, world) if resume else None
        trainer = LMTrainer(config, out, world, sample, command, started=found)
        if found is not None:
            trainer.resume(found)
        trainer.check(rehearse)
        return trainer.run()


def _take(out: Path, resume: bool, command: str, held: ExitStack) -> None:
    """Lock the folder of a run, in the first process, the only one that writes there."""
    held.enter_context(lock_folder(out, command or "tessera train", below=("text", "samples/*")))
    check_out(out, resume)
    shutil.rmtree(out / ".model.tmp", ignore_errors=True)  # left by a killed export (export.py)
    Checkpoints(out / "steps", ONE_PROCESS, keep_last=1).clean()


def check_out(out: Path, resume: bool) -> None:
    """Raise FileExistsError if a new run would write into a non-empty folder."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: a file is in the way; name a folder with --out")
    if not resume and out.exists() and not is_empty(out):
        raise FileExistsError(f"{out} is not empty; go on with that run by --resume, or name another folder with --out")


class LMTrainer:
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
        self.out, self.world, self.sample, self.command = out, world, sample, command
        config = config.model_copy(update={"engine": choose_engine(config.engine, out / "steps", world)})
        settings = config.train
        if started is None:
            self.cut = Cut(check_batch(settings.batch, settings.micro_batch, world.size), 1)
        else:
            self.cut = cut_like(started, config, world)
        self.micro = self.cut.micro
        self.parts = open_parts(config, out, world)
        self.config = config.model_copy(update={"lm": config.lm.explicit(self.parts.spec.num_codebooks)})
        self._check_room()
        self.average = WeightAverage(self.parts.make_lm(config.seed).to(world.device), settings.ema)
        lm = self.parts.make_lm(config.seed).to(world.device)
        self.num_parameters = lm.num_parameters
        self.num_trained = sum(parameter.numel() for parameter in lm.parameters() if parameter.requires_grad)
        self.sampler = self._make_sampler(lm.arrangement)
        self.count_terms = TermCounter(lm)
        self.loss_parts = lm.loss_parts
        check_patches(lm.arrangement, self.parts.spec.geometry, settings.patches)
        packed = config.data.packing.kind != "padded"
        objective = Objective(lm, settings.dtype, settings.label_smoothing, packed)
        dtype, head_width = getattr(torch, settings.dtype), self.config.lm.head_width
        self.attention = explain(self.config.lm.attention, world.device, dtype, head_width, packed)
        self.engine = make_engine(config, objective, world, settings.batch // self.cut.size // world.size)
        kept = settings.kept
        self.checkpoints = Checkpoints(out / "steps", world, kept.last, kept.best, test_loss)
        self.is_best = False
        """Whether the current weights are among the best and should be saved."""
        self.state = RunState(command=command)
        self.metrics: Metrics | None = None
        self.progress = Progress(settings.steps, 0, show=False)

    def _check_room(self) -> None:
        """Raise ValueError if the weights or a micro-batch of this config cannot fit into memory."""
        config, lm, device = self.config, self.parts.lm_config, self.world.device
        one, two = (self._with_layers(layers) for layers in (1, 2))
        check_weights_fit(one + (lm.layers - 1) * (two - one), "lm", device)
        packing = config.data.packing
        frames = float(self.parts.items.lengths.mean()) if packing.kind == "padded" else packing.steps
        half = config.train.dtype == "bfloat16"
        check_batch_fits(self.micro, frames, lm.layers * lm.width, self.parts.spec.num_codebooks, half, device)

    def _with_layers(self, layers: int) -> int:
        """Values that training keeps for a model with this many layers; building a thousand layers takes seconds."""
        parts = replace(self.parts, lm_config=self.parts.lm_config.model_copy(update={"layers": layers}))
        return count_numbers(lambda: parts.make_lm(0), "lm")

    def resume(self, found: Path) -> None:
        """Resume from a good checkpoint."""
        self.state = RunState.load(found, self.config, self.parts, self.world, self.micro)
        self.state.command = self.command
        check_pickles(found)
        self.engine.load(found)
        if self.average.decay:
            self.average.load(found)
        if self.world.is_first:
            say(f"going on from {found}")
            self._say_new_end()

    def check(self, rehearse: Rehearse | None = None) -> None:
        """Check for errors that would end the run later (preflight.py); all processes call this, before `run`."""
        config, parts, lm = self.config, self.parts, self.average.model

        def look() -> None:
            check_evaluation(config, parts, lm, self.micro)
            loaded = check_exportable(config, parts, lm)
            if self.world.is_first:
                kept, size = config.train.kept, checkpoint_bytes(config, self.num_parameters, self.num_trained)
                model = EXPORT_BYTES[config.export.dtype] * self.num_parameters
                check_room(self.out, size, model, kept.last + (kept.best if evaluates(config) else 0))
                for note in notes(config):
                    say(f"note: {note}")
                if rehearse is not None:
                    check_generation(config, parts, loaded, rehearse)

        self.world.together(look)

    def run(self) -> bool:
        """Train to the end or until a signal; see `train_lm`."""
        settings, state = self.config.train, self.state
        if self.world.is_first:
            self._open_folder()
        self.progress = Progress(settings.steps, state.step, show=self.world.is_first)
        self._introduce()
        started, first = time.monotonic(), state.step
        self._restart_clock()
        try:
            with StopRequest() as stop:
                while state.step < settings.steps:
                    stopping = self._train_step(stop)
                    last = state.step == settings.steps
                    if self._due(settings.log_every) or last:
                        self._log((settings.steps - state.step) * (time.monotonic() - started) / (state.step - first))
                    if self._due(settings.eval_every) and not last:
                        self.evaluate()
                    if self._due(settings.sample_every) or (last and settings.sample_every is not None):
                        self.generate_samples()
                    if (self._due(settings.save_every) or self.is_best or stopping) and not last:
                        self.save()
                    if stopping and not last:
                        command = f"{self.command or 'tessera train'} --resume"
                        self.progress.note(
                            f"stopped after step {state.step} and saved; go on with: {command}\n"
                            f"or make a model of it as it is with: tessera export {shlex.quote(str(self.out))}"
                        )
                        return False
                self.finish()
                return True
        finally:
            self.progress.close()
            if self.metrics is not None:
                self.metrics.close()

    def _train_step(self, stop: StopRequest) -> bool:
        """Run one optimizer step; returns whether any process was asked to stop."""
        rows_or_bins: Any = self.sampler.batch(self.state.step)
        rows = np.hstack(rows_or_bins)
        items, device = self.parts.items, self.world.device
        totals = self.count_terms(items.lengths[rows])
        side = side_at(self.config.train.patches, self.state.step, self.config.train.steps)
        K = len(totals)
        gathered = torch.zeros(K + 1, dtype=torch.float64, device=device)
        for piece in pieces_of(rows_or_bins, self.cut, self.world.rank, self.world.size):
            batch = items.batch(np.hstack(piece.items), self.state.step)
            if self.cut.pieces > 1:
                batch = batch.rows(piece.rows)
            batch = batch.to(device)
            # dropout of layers and conditions
            torch.manual_seed(mix(self.config.seed, 1, self.state.step, piece.number))
            with part_of_rows(piece.rows.start, self.cut.size, self.cut.micro):
                loss, sums, _ = self.engine.model(batch.codes, batch.lengths, batch.conditions, totals, side)
            self.engine.backward(loss)
            gathered[:K] += sums
        gathered[K] = float(stop.asked)
        *sums, stopping = self.world.add(gathered).tolist()
        info = self.engine.step()
        self.state.step += 1
        self._tokens += float(totals.sum())
        self.progress.advance()
        self._note_losses([value / float(total) for value, total in zip(sums, totals, strict=True)], info)
        if info.skipped:
            self._count_bad(rows.tolist())
        else:
            self.state.consecutive_bad = 0
            if self.average.decay:
                with self.engine.weights() as weights:
                    self.average.update(weights)
        return stopping > 0

    def finish(self) -> None:
        """Evaluate, save and export the model directory, then write FINISHED."""
        state = self.state
        if state.losses.get("test", {}).get("step") != state.step:
            self.evaluate()
        self.save()
        self._collect()
        self.world.together(lambda: self._export() if self.world.is_first else None)
        self.progress.note(f"finished: {self.out / 'model'}")

    def evaluate(self) -> None:
        """Evaluate the averaged weights on the test shards."""
        if self.parts.test is None:
            return
        self._collect()
        found = evaluate_loss(self.average.model, self.parts.test, self.micro, self.world, self.config.train.dtype)
        losses = self._losses(found.tolist())
        if self.metrics is not None:
            self.metrics.write(self.state.step, "test", losses)
        each = " ".join(f"{value:.3f}" for value in found.tolist())
        finite = math.isfinite(losses["loss"])
        self.is_best = finite and self.checkpoints.is_best(losses["loss"])
        said = ", among the best so far" if self.is_best else ""
        self.progress.note(f"step {self.state.step}: test loss {losses['loss']:.4f} [{each}]{said}")
        self.state.losses.pop("test", None)
        if finite:
            self.state.losses["test"] = {"step": self.state.step, **losses}
        self._restart_clock()

    def generate_samples(self) -> None:
        """Call the sampling callable to write into samples/step-N."""
        self._collect()
        self.world.together(lambda: self._sample() if self.world.is_first else None)
        self._restart_clock()

    def save(self) -> None:
        """Write a checkpoint; all processes call this."""
        state = self.engine.collect()
        size = 0 if state is None else state.num_bytes + self.average.num_bytes
        self.checkpoints.save(self.state.step, lambda folder: self._write(folder, state), size)
        self.is_best = False
        self._restart_clock()

    # Helpers

    def _make_sampler(self, arrangement: CodebookPattern) -> Sampler | PackedSampler:
        config, lengths = self.config, self.parts.items.lengths
        if isinstance(config.data.packing, BestFitConfig):
            steps = [arrangement.num_steps(int(length) + arrangement.variable_length) for length in lengths]
            return PackedSampler(steps, config.train.batch, config.seed, config.data.packing)
        return Sampler(lengths, config.train.batch, config.seed, config.data.pool_batches)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.state.step % every == 0

    def _open_folder(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        if self.state.step < self.config.train.steps:
            (self.out / "FINISHED").unlink(missing_ok=True)
        write_json(self.out / "config.json", self.config.model_dump(mode="json"))
        if self.parts.text is not None:
            (self.out / "text").mkdir(exist_ok=True)
            self.parts.text.save(self.out / "text")
        self.metrics = Metrics(self.out, self.state.step)

    def _introduce(self) -> None:
        config, items = self.config, self.parts.items
        assert config.engine.kind != "auto"
        because = f" ({config.engine.because})" if config.engine.because else ""
        left_out = f" ({items.left_out} longer ones left out)" if items.left_out else ""
        left_out += f" ({items.skipped} without label or text left out)" if items.skipped else ""
        self.progress.note(
            f"{config.name}: {self.num_parameters:,} parameters, {len(items)} items{left_out}, "
            f"{config.engine.kind} engine{because}, {self.world.size} x {self.world.device.type}, "
            f"{config.train.dtype}, to {self.out}"
        )
        self.progress.note(f"attention: {self.attention.name} ({self.attention.because})")

    def _say_new_end(self) -> None:
        settings, planned = self.config.train, self.state.planned
        if planned not in (None, settings.steps):
            shape = {"peak": settings.lr, "warmup_steps": settings.warmup_steps, "min_ratio": settings.min_lr_ratio}
            said = describe_new_end("train.steps", self.state.step, planned, settings.steps, **shape)
            say(said)

    def _losses(self, values: list[float]) -> dict[str, Any]:
        """Losses in the format of metrics.jsonl, from one value per codebook (or scale)."""
        return {"loss": self.loss_parts.mean(values), f"loss_per_{self.loss_parts.name}": values}

    def _note_losses(self, values: list[float], info: StepInfo) -> None:
        losses = self._losses(values)
        self.latest = {**losses, "lr": info.lr, "grad_norm": info.grad_norm}
        if not info.skipped:
            self.state.losses["train"] = {"step": self.state.step, **losses}

    def _restart_clock(self) -> None:
        self._tokens, self._clock = 0.0, time.monotonic()

    def _log(self, seconds_left: float) -> None:
        step, latest = self.state.step, self.latest
        rate = self._tokens / max(1e-9, time.monotonic() - self._clock)
        self._restart_clock()
        values = latest[f"loss_per_{self.loss_parts.name}"]
        self.progress.report(step, latest["loss"], values, rate, seconds_left)
        if self.metrics is not None:
            epoch = self.sampler.epoch(step)
            more = {"tokens_per_second": rate, "epoch": epoch, "skipped": self.state.skipped}
            self.metrics.write(step, "train", {**latest, **more})

    def _count_bad(self, rows: Sequence[int]) -> None:
        """Record the items of a skipped step, and stop after too many in a row."""
        state, limit = self.state, self.config.train.max_consecutive_bad
        state.skipped += 1
        state.consecutive_bad += 1
        if self.metrics is not None:
            items = self.parts.items
            ids = [items.shards.item(int(items.numbers[row])).id for row in rows]
            self.metrics.write(state.step, "bad", {**self.latest, "items": ids})
        self.progress.note(
            f"step {state.step}: the loss or its gradient is not finite; skipped ({state.consecutive_bad} of {limit})"
        )
        if state.consecutive_bad >= limit:
            raise TrainingFailed(
                f"the loss or its gradient was not finite in {limit} steps in a row, up to step {state.step}; the "
                f'weights were left as after step {state.step - limit}; look at the items in the lines "bad" of '
                f"{self.out / 'metrics.jsonl'}, or start another run with a lower train.lr"
            )

    def _collect(self) -> None:
        """Update `average.model`, which is evaluated, sampled and exported; all processes call this."""
        if self.average.updates == 0:  # gathering the weights of all processes takes time
            with self.engine.weights(exact=True) as weights:
                self.average.refresh(weights)

    def _loaded_model(self) -> LoadedModel:
        return self.parts.loaded(self.average.model, self.config.generation)

    def _sample(self) -> None:
        if self.sample is not None:
            folder = self.out / "samples" / f"step-{self.state.step:08}"
            count, seed = self.config.train.samples, self.config.seed
            folder.mkdir(parents=True, exist_ok=True)
            self.sample(make_request(self._loaded_model(), self.parts, folder, count, seed))

    def _write(self, folder: Path, state: EngineState | None) -> None:
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
            raise ValueError(f"{error}; nothing is lost, the run is saved, and can be exported by: {again}") from None
        write_json(self.out / "FINISHED", {"step": state.step, "losses": state.losses, "command": state.command})


def find_checkpoint(out: Path, world: ProcessGroup) -> Path | None:
    """The newest good checkpoint of a run; None, with a note, if there is none."""
    checkpoints = Checkpoints(out / "steps", world, keep_last=1)
    found = checkpoints.newest()
    if found is None and world.is_first:
        say(f"note: no checkpoint in {checkpoints.folder}, starting at the beginning")
    return found


def cut_like(found: Path, config: TrainConfig, world: ProcessGroup) -> Cut:
    """Split of the batch that keeps the micro-batches of a checkpoint.

    If the processes cannot share them and their noise cannot be divided (packed rows, or a depth head trained on a
    share of the steps), they become smaller, with a note: the noise then differs.
    """
    settings = config.train
    micro = micro_batch_of(found)
    cut = cut_batch(settings.batch, micro, world.size)
    whole_noise = config.data.packing.kind == "padded" and getattr(config.lm.head, "trained_share", 1) == 1
    if cut.pieces == 1 or whole_noise:
        return cut
    if world.is_first:
        print(
            f"note: this run has micro-batches of {micro}, which {world.size} processes cannot share; it goes on with "
            f"{cut.size}: the same batches, but other noise (dropout and the like)",
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
