"""Checkpoint content of a tokenizer run besides the engines' files: counters, buffers, balance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...configs.files import read_safetensors, write_safetensors
from ...configs.schema import ConfigError
from ..common.run_state import RunCounters, counters_of, read_run_file, write_run_file
from .config import TokenizerTrainConfig

MAY_CHANGE = (
    "device",
    "data",  # its fingerprint checks the content
    "init.from",  # read at the start alone
    "train.keep_last",
    "train.save_every",
    "train.snapshot_every",
    "train.log_every",
    "train.max_consecutive_bad",
    "stages",  # compared below, where they have started
)


@dataclass
class TokenizerRunState(RunCounters):
    """Progress of a run."""

    stage: int = 0
    """Finished stages."""
    balance: dict[str, list[float]] = field(default_factory=dict)
    """See Balance.averages."""
    planned: tuple[int | None, ...] = ()
    """Steps of each stage when the checkpoint was saved; None for a fit stage."""

    def save(self, folder: Path, config: TokenizerTrainConfig, data: str, processes: int, micro_batch: int) -> None:
        """Write run.json; data: fingerprint of the corpus."""
        write_run_file(folder, self, config, processes, micro_batch, stage=self.stage, balance=self.balance, data=data)

    @classmethod
    def load(cls, folder: Path, config: TokenizerTrainConfig, data: str) -> TokenizerRunState:
        """Load run.json. ConfigError: the run had another config or other data."""
        found = read_run_file(folder, config, config.train.micro_batch, MAY_CHANGE)
        _check_stages(found, config, folder)
        if found["data"] != data:
            raise ConfigError(
                f"data: {config.data} is not what {folder} was trained on; put the old media back, or start another "
                "run with another --out"
            )
        planned = tuple(stage.get("steps") for stage in found["config"]["stages"])
        return cls(**counters_of(found), stage=found["stage"], balance=found["balance"], planned=planned)


def _check_stages(found: dict[str, Any], config: TokenizerTrainConfig, folder: Path) -> None:
    """Check that the stages that have begun are unchanged, except for the end of the latest.

    Args:
        found: run.json in `folder`.
    """
    before, now = found["config"]["stages"], config.model_dump(mode="json")["stages"]
    begun = range(min(len(before), found["stage"] + 1))
    last = max((number for number in begun if before[number]["kind"] == "train"), default=-1)
    done = found["step"] - sum(stage.get("steps", 0) for stage in before[: max(0, last)])
    for number in begun:
        if number < len(now) and number == last and _differ_in_steps_only(before[number], now[number]):
            if now[number]["steps"] < done:
                raise ConfigError(
                    f"stages.{number}.steps: {now[number]['steps']}, but {done} are done ({folder}); set "
                    "at least as many, or freeze an earlier checkpoint with: tessera export "
                    f"{folder.parent.parent} --step N"
                )
        elif number >= len(now) or before[number] != now[number]:
            raise ConfigError(
                f"stages.{number}: this run was started with another one ({folder}); set it back, or start another "
                "run with another --out"
            )


def _differ_in_steps_only(before: dict, now: dict) -> bool:
    """Whether two stages differ only in their steps."""
    return {**before, "steps": 0} == {**now, "steps": 0}


def save_state(module: nn.Module, path: Path, with_weights: bool) -> None:
    """Write the persistent buffers of a module (codebooks, counts) and, if with_weights, its weights."""
    lasting = module.state_dict().keys()
    tensors = {name: buffer for name, buffer in module.named_buffers() if name in lasting}
    if with_weights:
        tensors |= dict(module.named_parameters())
    if tensors:
        write_safetensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


@torch.no_grad()
def load_state(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Load the file that `save_state` wrote; of it the tensors of a module whose names begin with `prefix`."""
    if path.is_file():
        own = module.state_dict()
        for name, tensor in read_safetensors(path)[0].items():
            if name.startswith(prefix):
                own[name.removeprefix(prefix)].copy_(tensor)
