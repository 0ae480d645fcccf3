"""Train a tokenizer from a YAML file, then freeze it.

    OUT/train.json       the resolved config                 OUT/steps/         checkpoints (train/common/checkpoint.py)
    OUT/metrics.jsonl    losses (train/common/metrics.py)    OUT/snapshot-N/    frozen during training
    OUT/config.json, OUT/tokenizer.safetensors               the finished tokenizer

The loop is train/common/trainer.py. Every random choice of a step depends only on (seed, step, micro-batch), and
codebooks change only between steps. So a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...configs.files import write_json
from ...configs.printable import say
from ...configs.schema import ConfigError
from ...tokenize.audio.networks import AudioNet
from ...tokenize.base import Tokenizer
from ...tokenize.image.networks import ImageNet
from ...tokenize.kinds import FROZEN, NETS
from ...tokenize.tokenizer import make_tokenizer
from ..common.batch_sampler import check_batch, cut_batch, mix
from ..common.checkpoint import Checkpoints, check_pickles
from ..common.disk_space import check_disk_space
from ..common.run_folder import open_run
from ..common.run_state import micro_batch_of
from ..common.signals import StopRequest
from ..common.trainer import Trainer
from ..discriminators.registry import Discriminators
from ..distributed.process_group import ProcessGroup, TrainingFailed
from ..engines.ema import WeightAverage
from ..engines.lr_schedule import describe_new_end
from ..engines.state_files import EngineState
from ..engines.torch_engine import TorchEngine
from ..initialization.start_tokenizer import start_tokenizer_
from ..losses.balancer import make_balance
from ..losses.base import LossContext
from ..losses.registry import make_losses
from .config import TokenizerTrainConfig, TokenizerTraining
from .dataset import MediaInMemory
from .objective import TokenizerObjective, collect_latents
from .phases import FitStageConfig, TrainStageConfig
from .preflight import (
    begin_stage,
    check_discriminators,
    check_freezing,
    check_memory,
    check_stages,
    check_terms,
    say_notes,
)
from .run_state import TokenizerRunState, load_state, save_state
from .train_step import TokenizerStepper, TokenizerStepReport

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
    out = Path(out)
    with open_run(
        out,
        config.device,
        resume=resume,
        command=command or "tessera tokenizer train",
        below=("snapshot-*",),
        prepare=lambda: check_free(out, resume),
        show=progress,
    ) as (world, found):
        trainer = TokenizerTrainer(config, out, world, teachers or {}, progress, command, started=found)
        trainer.check()
        if found is not None:
            trainer.resume(found)
        trainer.run()
        return trainer.tokenizer


def check_free(out: Path, resume: bool) -> None:
    """Raise FileExistsError if a new run would write into a folder with a tokenizer or another run."""
    if resume:
        return
    if (out / "config.json").exists():
        raise FileExistsError(f"{out}: contains a tokenizer already; choose another --out or remove it")
    if (out / "steps").exists():
        raise FileExistsError(f"{out}: contains a run already; resume it with --resume, or choose another --out")


class TokenizerTrainer(Trainer[TokenizerStepReport, TokenizerRunState]):
    """One run in one process; see `train_tokenizer`. After `run`, `tokenizer` is the frozen tokenizer; None if stopped.

    Args:
        started: checkpoint that `resume` will load; the batch is split as there.
    """

    advice = "lower train.lr, or use train.dtype=float32"

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
        settings = config.train
        checkpoints = Checkpoints(out / "steps", world, settings.keep_last)
        show = progress and world.is_first
        super().__init__(out, world, settings, config.total_steps, checkpoints, TokenizerRunState(), command, show)
        if started is None:
            self.micro = check_batch(settings.batch, settings.micro_batch, world.size)
        else:
            self.micro = micro_like(started, settings, world, show)
        check_memory(config, self.micro, world.device)
        self.start_note: str | None = None
        """What comes from init.from; shown once nothing is wrong."""
        net = self._make_net(teachers, started)
        self.media = MediaInMemory(config, show)
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
        self.discriminators = self._make_discriminators()
        self.balance = make_balance(config.balance)
        self.engine: TorchEngine | None = None
        self.discriminator_engine: TorchEngine | None = None
        self.begun: int | None = None
        """Stage that the engines belong to."""
        self.tokenizer: Tokenizer | None = None

    def _make_net(self, teachers: Mapping[str, nn.Module], started: Path | None) -> AudioNet | ImageNet:
        """Build the network; checks what needs no media, which may take an hour to read."""
        config = self.config
        torch.manual_seed(mix(config.seed, 0))
        net = NETS[config.tokenizer.kind](config.tokenizer)
        FROZEN[config.tokenizer.kind].code_geometry(config.tokenizer, net.quantizer)
        if started is not None:  # a checkpoint has all tensors; those that a stage fits are checked below
            load_state(net, started / "buffers.safetensors", "net.")
        elif config.init is not None:
            self.start_note = start_tokenizer_(net, config.init)
        check_terms(config, net, teachers)
        return net

    def _make_discriminators(self) -> Discriminators | None:
        config, tokenizer = self.config.judges, self.config.tokenizer
        if config is None:
            return None
        channels = 1 if tokenizer.kind == "audio" else tokenizer.geometry.channels
        return Discriminators(config, channels).to(self.world.device)

    def check(self) -> None:
        """Check for errors that would end the run later (preflight.py); all processes call this, before `resume`."""
        config, settings = self.config, self.config.train

        def check_all() -> None:
            check_stages(config, self.objective)
            check_discriminators(config, self.media, self.discriminators)
            if self.world.is_first:
                check_freezing(config, self._frozen_net())
                modules = [self.objective, *([self.discriminators] if self.discriminators is not None else [])]
                trained = sum(parameter.numel() for module in modules for parameter in module.parameters())
                own = sum(parameter.numel() for parameter in self.objective.net.parameters())
                check_disk_space(self.out, 12 * trained + (4 * own if settings.ema else 0), 4 * own, settings.keep_last)
            if self.show:
                say_notes(config)
                if self.start_note is not None:
                    say(f"note: {self.start_note}")

        self.world.together(check_all)

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
        if self.discriminators is not None:
            load_state(self.discriminators, found / "judges.safetensors")
        if self.discriminator_engine is not None:
            self.discriminator_engine.load(found / "judges")
        self.balance.averages = self.state.balance
        if self.average.decay:
            self.average.load(found)
        if self.show:
            say(f"resuming from {found}")
            self._note_new_end(last)

    # The run: see Trainer

    def open_folder(self) -> None:
        """See Trainer."""
        write_json(self.out / "train.json", self.config.model_dump(mode="json"))

    def introduce(self) -> None:
        """See Trainer."""
        parameters = sum(parameter.numel() for parameter in self.objective.net.parameters())
        self.progress.note(
            f"{self.config.tokenizer.name}: {parameters:,} parameters, {len(self.media.items)} items, "
            f"{self.world.size} x {self.world.device.type}, {self.config.train.dtype}, to {self.out}"
        )

    def train(self, stop: StopRequest) -> bool:
        """Run the stages that are not finished; False if stopped by a signal."""
        for number, stage in enumerate(self.config.stages):
            if number < self.state.stage:
                continue
            if stage.kind == "fit":
                self.fit(stage)
            else:
                if self.begun != number:
                    self.begin(number)
                if not self.train_until(self._start(number) + stage.steps, stop):
                    return False
            self.state.stage = number + 1
        return True

    def begin(self, number: int) -> None:
        """Create the engines of a train stage."""
        stage, settings = self.config.stages[number], self.config.train
        assert isinstance(stage, TrainStageConfig)
        begin_stage(self.config, self.objective, number)
        self.average.settle({name: own for name, own in self.objective.net.named_parameters() if not own.requires_grad})
        warmup = settings.warmup_steps if stage.warmup_steps is None else stage.warmup_steps
        changes = {"steps": stage.steps, "lr": stage.lr or settings.lr, "warmup_steps": warmup}
        own = settings.model_copy(update=changes)
        micro_steps = settings.batch // self.micro // self.world.size
        self.engine = TorchEngine(self.objective, own, self.world, micro_steps, may_skip_parts=True)
        self.discriminator_engine = None
        adversarial = any(loss.needs_discriminators for loss in self.objective.output_on.values())
        if self.discriminators is not None and adversarial:
            config, start = self.config.judges, self._start(number)
            assert config is not None
            times = sum(step >= config.first_step for step in range(start, start + stage.steps)[:: config.every])
            own = own.model_copy(update={"steps": max(1, times), "lr": config.lr or own.lr})
            self.discriminator_engine = TorchEngine(
                self.discriminators, own, self.world, micro_steps, may_skip_parts=True
            )
        self.stepper = TokenizerStepper(
            self.config, self.media, self.world, self.micro, self.balance, self.engine, self.discriminator_engine
        )
        self.begun = number

    def fit(self, stage: FitStageConfig) -> None:
        """Run a fit stage, identically in each process."""
        net = self._frozen_net().to(self.world.device).eval()
        latents = collect_latents(net, self.objective, self.media, stage.items, self.world.device)
        try:
            self.objective.net.quantizer.fit(latents)
        except ValueError as error:
            raise ConfigError(f"stages: '{stage.name}': {error}") from None
        self.progress.note(f"stage '{stage.name}': fitted to {len(latents):,} latents")

    def train_step(self, stop: StopRequest) -> TokenizerStepReport:
        """See Trainer."""
        return self.stepper.step(self.state.step, stop)

    def accept(self, report: TokenizerStepReport) -> None:
        """See Trainer."""
        assert self.engine is not None
        with self.engine.weights() as weights:
            own = {name.removeprefix("net."): weight for name, weight in weights.items() if name.startswith("net.")}
            self.average.update(own)

    def describe_bad(self, report: TokenizerStepReport) -> dict[str, Any]:
        """See Trainer."""
        return dict(report.terms)

    def log(self, report: TokenizerStepReport) -> None:
        """See Trainer."""
        text = " ".join(f"{name} {value:.3f}" for name, value in report.terms.items())
        self.progress.report(self.state.step, text, self.seconds_left)
        more = {"stage": self.config.stages[self.state.stage].name, "loss": report.loss}
        more |= {"lr": report.info.lr, "grad_norm": report.info.grad_norm}
        more |= report.terms | {"codes_in_batch": report.codes_in_batch, "skipped": self.state.skipped}
        self.write_metrics("train", more | {"seconds": round(self.seconds, 2)})

    def evaluate_if_due(self, last: bool) -> None:
        """See Trainer."""
        if self.is_due(self.config.train.snapshot_every) and not last:
            self._snapshot()

    def collect(self) -> tuple[Callable[[Path], None], int]:
        """See Trainer."""
        assert self.engine is not None
        state = self.engine.collect()
        return partial(self._write, state), 0 if state is None else state.num_bytes + self.average.num_bytes

    def stopped(self) -> str:
        """Freeze the current tokenizer; see Trainer."""
        self._snapshot()
        command = f"{self.command or 'tessera tokenizer train'} --resume"
        return (
            f"stopped after step {self.state.step} and saved; the tokenizer so far is in {self._snapshot_folder()}; "
            f"resume with: {command}"
        )

    def finish(self) -> None:
        """Save and freeze."""
        if self.engine is not None:  # there was a train stage
            self.save()
        self.tokenizer = tokenizer = make_tokenizer(self.config.tokenizer, self._frozen_net())
        self.world.together(lambda: tokenizer.save(self.out) if self.world.is_first else None)

    # Helpers

    def _start(self, number: int) -> int:
        """Steps of all earlier stages."""
        return sum(stage.steps for stage in self.config.stages[:number] if stage.kind == "train")

    def _note_new_end(self, number: int) -> None:
        """Report a changed number of steps of a train stage."""
        stage, settings, planned = self.config.stages[number], self.config.train, self.state.planned[number]
        assert isinstance(stage, TrainStageConfig) and planned is not None
        if planned != stage.steps:
            warmup = settings.warmup_steps if stage.warmup_steps is None else stage.warmup_steps
            shape = {"peak": stage.lr or settings.lr, "warmup_steps": warmup, "min_ratio": settings.min_lr_ratio}
            done = self.state.step - self._start(number)
            say(describe_new_end(f"steps of stage '{stage.name}'", done, planned, stage.steps, **shape))

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

    def _write(self, state: EngineState | None, folder: Path) -> None:
        """Write the files of a checkpoint; called in the first process."""
        assert state is not None
        state.save(folder)
        save_state(self.objective, folder / "buffers.safetensors", with_weights=False)
        if self.discriminators is not None:
            save_state(self.discriminators, folder / "judges.safetensors", with_weights=True)
        if self.discriminator_engine is not None:
            (folder / "judges").mkdir()
            state = self.discriminator_engine.collect()
            assert state is not None
            state.save(folder / "judges")
        if self.average.decay:
            self.average.save(folder)
        self.state.balance = self.balance.averages
        self.state.save(folder, self.config, self.media.fingerprint, self.world.size, self.micro)


def micro_like(found: Path, settings: TokenizerTraining, world: ProcessGroup, show: bool) -> int:
    """Micro-batch size of a checkpoint; smaller, with a note, if the processes cannot share it."""
    cut = cut_batch(settings.batch, micro_batch_of(found), world.size)
    if cut.parts > 1 and show:
        print(
            f"note: this run has micro-batches of {cut.micro}, which {world.size} processes cannot share; it "
            f"continues with {cut.size}: the same batches, but different random numbers (level dropout and so on)",
            file=sys.stderr,
        )
    return cut.size
