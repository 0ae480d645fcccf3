"""Train a tokenizer from a YAML file, then freeze it.

    OUT/train.json       the resolved config                 OUT/steps/         checkpoints (train/common/checkpoint.py)
    OUT/metrics.jsonl    losses (train/common/metrics.py)    OUT/snapshot-N/    frozen during training
    OUT/config.json, OUT/tokenizer.safetensors               the finished tokenizer

Every random choice of a step depends only on (seed, step, micro-batch), and codebooks change only between steps. So a
resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from ...configs.files import read_json, write_json
from ...configs.folder_lock import lock_folder
from ...configs.printable import say
from ...configs.schema import ConfigError
from ...tokenize.audio.networks import AudioNet
from ...tokenize.image.networks import ImageNet
from ...tokenize.spec import AudioGeometry
from ...tokenize.tokenizer import FROZEN, NETS, Tokenizer, make_tokenizer
from ..common.batch_sampler import check_batch, cut_batch, mix
from ..common.checkpoint import STATE_FILE, Checkpoints, check_pickles
from ..common.memory_check import check_batch_fits, check_weights_fit, count_numbers
from ..common.metrics import Metrics, Progress
from ..common.signals import StopRequest
from ..discriminators.registry import Discriminators
from ..distributed.process_group import ONE_PROCESS, ProcessGroup, TrainingFailed, join_world, run_in
from ..engines.ema import WeightAverage
from ..engines.lr_schedule import describe_new_end
from ..engines.torch_engine import TorchEngine
from ..lm.preflight import check_room
from ..lm.run_state import micro_batch_of
from ..losses.balancer import make_balance
from ..losses.base import LossContext
from ..losses.codec_forward import encode_latents
from ..losses.registry import make_losses
from .config import TokenizerTrainConfig, TokenizerTraining
from .dataset import MediaInMemory
from .objective import TokenizerObjective
from .phases import FitStageConfig, TrainStageConfig
from .preflight import begin_stage, check_discriminators, check_freezing, check_stages, check_terms, say_notes
from .run_state import TokenizerRunState, load_state, save_state
from .train_step import StepReport, TokenizerStepper
from .warm_start import warm_start

__all__ = ["TokenizerTrainConfig", "TokenizerTrainer", "TokenizerTraining", "TrainingFailed", "train_tokenizer"]


def train_tokenizer(
    config: TokenizerTrainConfig,
    out: str | Path,
    progress: bool = True,
    *,
    resume: bool = False,
    teachers: Mapping[str, nn.Module] | None = None,
    command: str = "",
) -> Tokenizer | None:
    """Train and freeze a tokenizer; every process of a run calls this.

    Args:
        out: folder of the run, where the tokenizer is written.
        progress: report on stderr.
        resume: continue from the newest checkpoint in `out`, or start from the beginning if there is none.
        teachers: modules for teachers of kind `module`, by name; they are frozen here.
        command: command that started the run, for the message on how to resume.
    Returns:
        The tokenizer; None if stopped by Ctrl-C or SIGTERM, after saving.
    Raises:
        FileExistsError: `out` holds a tokenizer or a run, and `resume` is not set.
        ValueError: there are no usable media, the config does not match them or the checkpoint, or another process
            trains in `out`.
        TrainingFailed: non-finite losses, `train.max_consecutive_bad` times in a row.
    """
    world = join_world(config.device)
    out = Path(out)
    with run_in(world), ExitStack() as held:
        world.together(lambda: _take(out, resume, command, held) if world.is_first else None)
        found = None
        if resume:
            checkpoints = Checkpoints(out / "steps", world, keep_last=1)
            found = checkpoints.newest()
            if found is None and progress and world.is_first:
                say(f"note: no checkpoint in {checkpoints.folder}, starting at the beginning")
        trainer = TokenizerTrainer(config, out, world, teachers or {}, progress, command, started=found)
        trainer.check()
        if found is not None:
            trainer.resume(found)
        return trainer.run()


def _take(out: Path, resume: bool, command: str, held: ExitStack) -> None:
    """Lock the folder of a run, in the first process, the only one that writes there."""
    held.enter_context(lock_folder(out, command or "tessera tokenizer train", below=("snapshot-*",)))
    check_free(out, resume)
    Checkpoints(out / "steps", ONE_PROCESS, keep_last=1).clean()


def check_free(out: Path, resume: bool) -> None:
    """Raise FileExistsError if a new run would write into a folder with a tokenizer or another run."""
    if resume:
        return
    if (out / "config.json").exists():
        raise FileExistsError(f"{out}: holds a tokenizer already; choose another --out or remove it")
    if (out / "steps").exists():
        raise FileExistsError(f"{out}: holds a run already; go on with it by --resume, or choose another --out")


class TokenizerTrainer:
    """One run in one process; see `train_tokenizer`.

    Args:
        started: checkpoint that `resume` will load; the batch is split as there.
    """

    def __init__(
        self,
        config: TokenizerTrainConfig,
        out: Path,
        world: ProcessGroup,
        teachers: Mapping[str, nn.Module] = {},
        progress: bool = True,
        command: str = "",
        started: Path | None = None,
    ):
        self.config = config = config.resolved()
        self.out, self.world, self.command = out, world, command
        self.show = progress and world.is_first
        settings = config.train
        if started is None:
            self.micro = check_batch(settings.batch, settings.micro_batch, world.size)
        else:
            self.micro = micro_like(started, settings, world, self.show)
        self._check_room()
        torch.manual_seed(mix(config.seed, 0))
        net = NETS[config.tokenizer.kind](config.tokenizer)
        # Refuse a quantizer that does not fit before reading all media, and long before freezing.
        FROZEN[config.tokenizer.kind].code_geometry(config.tokenizer, net.quantizer)
        if config.warm_start is not None:
            warm_start(net, config.warm_start)
        check_terms(config, net, teachers)
        self.media = MediaInMemory(config, self.show)
        context = LossContext(
            geometry=config.tokenizer.geometry,
            latent_dim=config.tokenizer.latent_dim,
            num_codebooks=len(net.quantizer.cardinalities),
            alphabet=self.media.alphabet,
            labels=self.media.label_names,
            teachers=teachers,
        )
        self.objective = TokenizerObjective(net, make_losses(config.terms, context), settings.dtype).to(world.device)
        self.average = WeightAverage(copy.deepcopy(net), settings.ema)
        self.judges = None
        if config.judges is not None:
            self.judges = Discriminators(
                config.judges, 1 if config.tokenizer.kind == "audio" else config.tokenizer.geometry.channels
            ).to(world.device)
        self.balance = make_balance(config.balance)
        self.engine: TorchEngine | None = None
        self.judge_engine: TorchEngine | None = None
        self.begun: int | None = None
        self.checkpoints = Checkpoints(out / "steps", world, settings.keep_last)
        self.state = TokenizerRunState()
        self.metrics: Metrics | None = None
        self.progress = Progress(config.total_steps, 0, show=False)

    def _check_room(self) -> None:
        """Raise ValueError if the weights or a micro-batch of this config cannot fit into memory."""
        config, device = self.config.tokenizer, self.world.device
        numbers = count_numbers(lambda: NETS[config.kind](config, read_files=False), "tokenizer")
        check_weights_fit(numbers, "tokenizer", device)
        geometry = config.geometry
        if isinstance(geometry, AudioGeometry):
            frames = self.config.train.crop_seconds * geometry.frame_rate
            outputs = geometry.samples_per_frame
        else:
            frames, outputs = geometry.num_frames, geometry.channels * geometry.height * geometry.width
            outputs = outputs / frames
        check_batch_fits(self.micro, frames, config.latent_dim, outputs, False, device)

    def check(self) -> None:
        """Check for errors that would end the run later (preflight.py); all processes call this, before `resume`."""
        config, settings = self.config, self.config.train

        def look() -> None:
            check_stages(config, self.objective)
            check_discriminators(config, self.media, self.judges)
            if self.world.is_first:
                check_freezing(config, self._frozen_net())
                modules = [self.objective, *([self.judges] if self.judges is not None else [])]
                trained = sum(parameter.numel() for module in modules for parameter in module.parameters())
                own = sum(parameter.numel() for parameter in self.objective.net.parameters())
                check_room(self.out, 12 * trained + (4 * own if settings.ema else 0), 4 * own, settings.keep_last)
            if self.show:
                say_notes(config)

        self.world.together(look)

    def resume(self, found: Path) -> None:
        """Resume from a good checkpoint."""
        self.state = TokenizerRunState.load(found, self.config, self.media.fingerprint)
        check_pickles(found)
        trained = [number for number, stage in enumerate(self.config.stages) if stage.kind == "train"]
        last = [number for number in trained if number <= self.state.stage][-1]
        if self.state.step < self._start(last + 1):  # steps were added since it was finished
            self.state.stage = last
        self.begin(last)
        assert self.engine is not None
        self.engine.load(found)
        load_state(self.objective, found / "buffers.safetensors")
        if self.judges is not None:
            load_state(self.judges, found / "judges.safetensors")
        if self.judge_engine is not None:
            self.judge_engine.load(found / "judges")
        self.balance.averages = self.state.balance
        if self.average.decay:
            self.average.load(found)
        if self.show:
            say(f"going on from {found}")
            self._say_new_end(read_json(found / STATE_FILE)["config"]["stages"][last]["steps"], last)

    def run(self) -> Tokenizer | None:
        """Train to the end or until a signal; see `train_tokenizer`."""
        state = self.state
        if self.world.is_first:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.out / "train.json", self.config.model_dump(mode="json"))
            self.metrics = Metrics(self.out, state.step)
        self.progress = Progress(self.config.total_steps, state.step, show=self.show)
        self._introduce()
        self.started, self.first = time.monotonic(), state.step
        try:
            with StopRequest() as stop:
                for number, stage in enumerate(self.config.stages):
                    if number < state.stage:
                        continue
                    if stage.kind == "fit":
                        self.fit(stage)
                    elif not self._train(number, stage, stop):
                        return None
                    state.stage = number + 1
                return self._finish()
        finally:
            self.progress.close()
            if self.metrics is not None:
                self.metrics.close()

    def begin(self, number: int) -> None:
        """Create the engines of a train stage."""
        stage, settings = self.config.stages[number], self.config.train
        assert isinstance(stage, TrainStageConfig)
        begin_stage(self.config, self.objective, number)
        warmup = settings.warmup_steps if stage.warmup_steps is None else stage.warmup_steps
        changes = {"steps": stage.steps, "lr": stage.lr or settings.lr, "warmup_steps": warmup}
        own = settings.model_copy(update=changes)
        micro_steps = settings.batch // self.micro // self.world.size
        self.engine = TorchEngine(self.objective, own, self.world, micro_steps, may_skip_parts=True)
        self.judge_engine = None
        if self.judges is not None and any(term.judged for term in self.objective.output_on.values()):
            judged = self.config.judges
            assert judged is not None
            start = self._start(number)
            times = sum(step >= judged.first_step for step in range(start, start + stage.steps)[:: judged.every])
            own = own.model_copy(update={"steps": max(1, times), "lr": judged.lr or own.lr})
            self.judge_engine = TorchEngine(self.judges, own, self.world, micro_steps, may_skip_parts=True)
        self.stepper = TokenizerStepper(
            self.config, self.media, self.world, self.micro, self.balance, self.engine, self.judge_engine
        )
        self.begun = number

    def fit(self, stage: FitStageConfig) -> None:
        """Run a fit stage, identically in each process."""
        net = self._frozen_net()
        net.to(self.world.device).eval()
        settings, found = self.config.train, []
        for place in range(-(-stage.items // settings.batch)):
            rows = self.media.rows(place)
            batch = self.media.batch(place, rows, 0, settings.batch).to(self.world.device)
            with torch.no_grad(), self.objective.precision(self.world.device):
                latents = encode_latents(net, batch.media, batch.frame_mask)
            found.append(latents.flatten(0, 1) if batch.frame_mask is None else latents[batch.frame_mask])
        try:
            self.objective.net.quantizer.fit(torch.cat(found))
        except ValueError as error:
            raise ConfigError(f"stages: '{stage.name}': {error}") from None
        self.progress.note(f"stage '{stage.name}': fitted to {sum(map(len, found)):,} latents")

    def save(self) -> None:
        """Write a checkpoint; all processes call this."""
        if self.engine is not None:
            state = self.engine.collect()
            size = 0 if state is None else state.num_bytes + self.average.num_bytes
            self.checkpoints.save(self.state.step, self._write, size)

    def _train(self, number: int, stage: TrainStageConfig, stop: StopRequest) -> bool:
        """Run a train stage; False if stopped by a signal."""
        if self.begun != number:
            self.begin(number)
        settings, state = self.config.train, self.state
        total, end = self.config.total_steps, self._start(number) + stage.steps
        while state.step < end:
            report = self.stepper.step(state.step, stop.asked)
            state.step += 1
            self.progress.advance()
            self._account(report)
            last = state.step == total
            if state.step % settings.log_every == 0 or state.step == end:
                self._log(stage, report)
            if settings.snapshot_every and state.step % settings.snapshot_every == 0 and not last:
                self._snapshot()
            if last:
                break
            if report.stopping or (settings.save_every and state.step % settings.save_every == 0):
                self.save()
            if report.stopping:
                self._snapshot()
                command = f"{self.command or 'tessera tokenizer train'} --resume"
                self.progress.note(
                    f"stopped after step {state.step}: saved, and frozen as it is in {self._snapshot_folder()}; "
                    f"go on with: {command}"
                )
                return False
        return True

    def _finish(self) -> Tokenizer:
        """Save and freeze."""
        self.save()
        tokenizer = make_tokenizer(self.config.tokenizer, self._frozen_net())
        self.world.together(lambda: tokenizer.save(self.out) if self.world.is_first else None)
        return tokenizer

    # Helpers

    def _start(self, number: int) -> int:
        """Steps of all earlier stages."""
        return sum(stage.steps for stage in self.config.stages[:number] if stage.kind == "train")

    def _say_new_end(self, planned: int, number: int) -> None:
        """Report a changed number of steps. planned: steps of the train stage when the checkpoint was saved."""
        stage, settings = self.config.stages[number], self.config.train
        assert isinstance(stage, TrainStageConfig)
        if planned != stage.steps:
            warmup = settings.warmup_steps if stage.warmup_steps is None else stage.warmup_steps
            shape = {"peak": stage.lr or settings.lr, "warmup_steps": warmup, "min_ratio": settings.min_lr_ratio}
            done = self.state.step - self._start(number)
            said = describe_new_end(f"steps of stage '{stage.name}'", done, planned, stage.steps, **shape)
            say(said)

    def _introduce(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.objective.net.parameters())
        self.progress.note(
            f"{self.config.tokenizer.name}: {parameters:,} parameters, {len(self.media.items)} items, "
            f"{self.world.size} x {self.world.device.type}, {self.config.train.dtype}, to {self.out}"
        )

    def _account(self, report: StepReport) -> None:
        """Update the average after a good step; stop after too many bad ones in a row."""
        state, limit = self.state, self.config.train.max_consecutive_bad
        if not report.info.skipped:
            state.consecutive_bad = 0
            assert self.engine is not None
            with self.engine.weights() as weights:
                own = {name.removeprefix("net."): weight for name, weight in weights.items() if name.startswith("net.")}
                self.average.update(own)
            return
        state.skipped += 1
        state.consecutive_bad += 1
        if self.metrics is not None:
            self.metrics.write(state.step, "bad", dict(report.terms))
        self.progress.note(
            f"step {state.step}: the loss or its gradient is not finite; skipped ({state.consecutive_bad} of {limit})"
        )
        if state.consecutive_bad >= limit:
            raise TrainingFailed(
                f"the loss or its gradient was not finite {limit} times in a row, up to step {state.step}; the weights "
                f"were left as after step {state.step - limit}; lower train.lr, or use train.dtype=float32"
            )

    def _log(self, stage: TrainStageConfig, report: StepReport) -> None:
        state = self.state
        seconds = time.monotonic() - self.started
        left = (self.config.total_steps - state.step) * seconds / max(1, state.step - self.first)
        text = " ".join(f"{name} {value:.3f}" for name, value in report.terms.items())
        self.progress.show_text(state.step, text, left)
        if self.metrics is not None:
            more = {"stage": stage.name, "loss": report.loss, "lr": report.info.lr, "grad_norm": report.info.grad_norm}
            more |= report.terms | {"codes_in_batch": report.codes_in_batch, "skipped": state.skipped}
            self.metrics.write(state.step, "train", more | {"seconds": round(seconds, 2)})

    def _frozen_net(self) -> AudioNet | ImageNet:
        """A copy of the network to freeze: averaged weights if available, current codebooks."""
        net = copy.deepcopy(self.objective.net)
        if self.average.updates:
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    parameter.copy_(self.average.model.get_parameter(name))
        return net.to("cpu").train(False)

    def _snapshot_folder(self) -> Path:
        return self.out / f"snapshot-{self.state.step}"

    def _snapshot(self) -> None:
        if self.world.is_first:
            make_tokenizer(self.config.tokenizer, self._frozen_net()).save(self._snapshot_folder())

    def _write(self, folder: Path) -> None:
        """Write the files of a checkpoint; called in the first process."""
        _write_engine(self.engine, folder)
        save_state(self.objective, folder / "buffers.safetensors", with_weights=False)
        if self.judges is not None:
            save_state(self.judges, folder / "judges.safetensors", with_weights=True)
        if self.judge_engine is not None:
            (folder / "judges").mkdir()
            _write_engine(self.judge_engine, folder / "judges")
        if self.average.decay:
            self.average.save(folder)
        self.state.balance = self.balance.averages
        self.state.save(folder, self.config, self.media.fingerprint, self.world.size, self.micro)


def _write_engine(engine: TorchEngine | None, folder: Path) -> None:
    state = None if engine is None else engine.collect()
    assert state is not None
    state.save(folder)


def micro_like(found: Path, settings: TokenizerTraining, world: ProcessGroup, show: bool) -> int:
    """Micro-batch size of a checkpoint; smaller, with a note, if the processes cannot share it."""
    cut = cut_batch(settings.batch, micro_batch_of(found), world.size)
    if cut.pieces > 1 and show:
        print(
            f"note: this run has micro-batches of {cut.micro}, which {world.size} processes cannot share; it goes on "
            f"with {cut.size}: the same batches, but where something is drawn at random (level dropout and the like) "
            "other draws",
            file=sys.stderr,
        )
    return cut.size
