"""State of a run besides its weights: content of a checkpoint's run.json, and whether it belongs to this run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...configs.files import read_json
from ...configs.schema import ConfigError
from ...lm.attention.auto import Choice
from ..common.checkpoint import STATE_FILE
from ..common.run_state import RunCounters, counters_of, micro_batch_of, read_run_file, write_run_file
from ..distributed.process_group import ProcessGroup
from .config import TrainConfig
from .dataset import conditions_fingerprint, data_fingerprint
from .setup import TrainingSetup

MAY_CHANGE = (
    "device",
    "engine.because",
    "export",
    "generation",
    "train.keep",
    "train.keep_last",
    "train.steps",  # compared below with the finished steps
    "train.save_every",
    "train.eval_every",
    "train.sample_every",
    "train.samples",
    "train.log_every",
    "data.test",
    "data.shards",  # the folder; its content is compared below
    "tokenizer",
    "text_encoder",  # its content is compared below
    "clusters",
    "train.max_consecutive_bad",
    "init.from",  # read at the start alone; with lora its weights are compared below
)
"""Settings of a resumed run that may differ from those it was started with (train/engines/lr_schedule.py describes the
effect of train.steps on the learning rate)."""


@dataclass
class RunState(RunCounters):
    """Counters and losses of a run."""

    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Latest losses of each split: {"step", "loss", "loss_per_codebook", ...}."""
    command: str = ""
    """Command of the process that saved it."""
    planned: int | None = None
    """train.steps at that time; None: nothing was saved."""

    def save(
        self,
        folder: Path,
        config: TrainConfig,
        parts: TrainingSetup,
        world: ProcessGroup,
        micro_batch: int,
        attention: Choice,
    ) -> None:
        """Write run.json: the counters and the run's inputs; `attention` as returned by `explain`."""
        write_run_file(
            folder,
            self,
            config,
            world.size,
            micro_batch,
            sampler={"seed": config.seed, "step": self.step},
            losses=self.losses,
            command=self.command,
            attention={"name": attention.name, "because": attention.reason},
            tokenizer=parts.spec.fingerprint,
            clusters=None if parts.clustering is None else parts.clustering.spec.fingerprint,
            data=data_fingerprint(parts.items),
            told=conditions_fingerprint(parts.items),
            labels=list(parts.labels),
            base=None if config.lora is None or parts.origin is None else parts.origin.fingerprint,
        )

    @classmethod
    def load(
        cls, folder: Path, config: TrainConfig, parts: TrainingSetup, world: ProcessGroup, micro_batch: int
    ) -> RunState:
        """Load run.json. ConfigError: the run had another config or other data.

        Args:
            micro_batch: examples of a micro-batch from here on (see `cut_like` in trainer.py for when there are fewer).
        """
        found = read_run_file(folder, config, config.train.micro_batch, MAY_CHANGE)
        if config.train.steps < found["step"]:
            raise ConfigError(
                f"train.steps: {config.train.steps}, but {found['step']} are done ({folder}); set at least "
                f"as many, or export an earlier checkpoint with: tessera export {folder.parent.parent} --step N"
            )
        if found["tokenizer"] != parts.spec.fingerprint or found["data"] != data_fingerprint(parts.items):
            raise ConfigError(
                f"data.shards: {config.data.shards} is not what {folder} was trained on; "
                "put the old shards back, or start another run with another --out"
            )
        if found.get("told") not in (None, conditions_fingerprint(parts.items)):  # earlier versions did not store it
            raise ConfigError(
                f"the labels or texts of {config.data.shards}, or the text tokenizer or encoder beside the "
                f"checkpoints, are not those that {folder} was trained with; put them back, or start another run with "
                "another --out"
            )
        clusters = None if parts.clustering is None else parts.clustering.spec.fingerprint
        if found.get("clusters") != clusters:
            raise ConfigError(
                f"clusters: {config.clusters} are not those {folder} was trained with; put them back, or start another "
                "run with another --out"
            )
        if config.lora is not None and parts.origin is not None and found.get("base") != parts.origin.fingerprint:
            raise ConfigError(
                f"init.from: the weights of {config.init and config.init.source} are not those {folder} changes "
                "(lora); put them back, or start another run with another --out"
            )
        if found["processes"] != world.size and micro_batch == micro_batch_of(folder) and world.is_first:
            print(
                f"note: saved by {found['processes']} processes, resuming with {world.size}: "
                "the run is the same up to rounding, not bit for bit",
                file=sys.stderr,
            )
        planned = found["config"]["train"]["steps"]
        return cls(**counters_of(found), losses=found["losses"], command=found.get("command", ""), planned=planned)


def test_loss(folder: Path) -> float | None:
    """Loss of a checkpoint on data.test; None if it was not evaluated at that step or is unreadable."""
    try:
        state = read_json(folder / STATE_FILE)
        found = state["losses"].get("test", {})
        return float(found["loss"]) if found.get("step") == state["step"] else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
