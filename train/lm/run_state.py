"""State of a run besides its weights: content of a checkpoint's run.json, and whether it belongs to this run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import __version__
from ...configs.files import read_json, write_json
from ...configs.schema import ConfigError
from ...lm.attention.auto import Choice
from ..common.checkpoint import STATE_FILE
from ..distributed.process_group import ProcessGroup
from .config import TrainConfig, check_resumable
from .dataset import conditions_fingerprint, data_fingerprint
from .model_card import git_commit
from .setup import TrainingSetup


@dataclass
class RunState:
    """Counters of a run."""

    step: int = 0
    """Finished steps."""
    skipped: int = 0
    """Finished steps that were bad and changed nothing."""
    consecutive_bad: int = 0
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
        description = {
            "tessera": __version__,
            "git_commit": git_commit(),
            "step": self.step,
            "sampler": {"seed": config.seed, "step": self.step},
            "skipped": self.skipped,
            "consecutive_bad": self.consecutive_bad,
            "losses": self.losses,
            "command": self.command,
            "processes": world.size,
            "micro_batch": micro_batch,
            "attention": vars(attention),
            "tokenizer": parts.spec.fingerprint,
            "clusters": None if parts.clustering is None else parts.clustering.spec.fingerprint,
            "data": data_fingerprint(parts.items),
            "told": conditions_fingerprint(parts.items),
            "config": config.model_dump(mode="json"),
        }
        write_json(folder / STATE_FILE, description)

    @classmethod
    def load(
        cls, folder: Path, config: TrainConfig, parts: TrainingSetup, world: ProcessGroup, micro_batch: int
    ) -> RunState:
        """Load run.json. ConfigError: the run had another config or other data.

        Args:
            micro_batch: examples of a micro-batch from here on (see `cut_like` in trainer.py for when there are fewer).
        """
        found = read_json(folder / STATE_FILE)
        before = found["config"]
        if config.train.micro_batch in (None, micro_batch_of(folder)):
            before["train"]["micro_batch"] = config.train.micro_batch
        check_resumable(before, config, str(folder))
        if config.train.steps < found["step"]:
            raise ConfigError(
                f"train.steps: {config.train.steps}, but {found['step']} are done ({folder}); give at least as many, "
                f"or make a model of an earlier checkpoint with: tessera export {folder.parent.parent} --step N"
            )
        if found["tokenizer"] != parts.spec.fingerprint or found["data"] != data_fingerprint(parts.items):
            raise ConfigError(
                f"data.shards: {config.data.shards} is not what {folder} was trained on; "
                "put the old shards back, or start another run with another --out"
            )
        if found.get("told") not in (None, conditions_fingerprint(parts.items)):  # earlier versions did not store it
            raise ConfigError(
                f"the labels or texts of {config.data.shards}, or the text tokenizer beside the checkpoints, are not "
                f"those {folder} was trained with; put them back, or start another run with another --out"
            )
        clusters = None if parts.clustering is None else parts.clustering.spec.fingerprint
        if found.get("clusters") != clusters:
            raise ConfigError(
                f"clusters: {config.clusters} are not those {folder} was trained with; put them back, or start another "
                "run with another --out"
            )
        if found["processes"] != world.size and micro_batch == micro_batch_of(folder) and world.is_first:
            print(
                f"note: saved by {found['processes']} processes, going on with {world.size}: "
                "the same run up to rounding, not bit for bit",
                file=sys.stderr,
            )
        counts = {name: found[name] for name in ("step", "skipped", "consecutive_bad", "losses")}
        return cls(**counts, command=found.get("command", ""), planned=found["config"]["train"]["steps"])


def micro_batch_of(folder: Path) -> int:
    """Micro-batch size of the run that saved a checkpoint, for a language model or a tokenizer."""
    found = read_json(folder / STATE_FILE)
    known = found.get("micro_batch") or found["config"]["train"]["micro_batch"]  # earlier versions: config only
    return known or max(1, found["config"]["train"]["batch"] // found["processes"])


def test_loss(folder: Path) -> float | None:
    """Loss of a checkpoint on data.test; None if it was not evaluated at that step or is unreadable."""
    try:
        state = read_json(folder / STATE_FILE)
        found = state["losses"].get("test", {})
        return float(found["loss"]) if found.get("step") == state["step"] else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
