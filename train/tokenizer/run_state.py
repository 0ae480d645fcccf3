"""Checkpoint content of a tokenizer run besides the engines' files: counters, buffers, balance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ... import __version__
from ...configs.files import read_json, read_safetensors, write_json, write_safetensors
from ...configs.schema import ConfigError
from ..common.checkpoint import STATE_FILE
from ..lm.config import check_resumable
from ..lm.model_card import git_commit
from ..lm.run_state import micro_batch_of
from .config import TokenizerTrainConfig

MAY_CHANGE = (
    "device",
    "data",  # its fingerprint checks the content
    "warm_start",
    "train.keep_last",
    "train.save_every",
    "train.snapshot_every",
    "train.log_every",
    "train.max_consecutive_bad",
    "stages",  # compared below, where they have started
)


@dataclass
class TokenizerRunState:
    """Progress of a run."""

    step: int = 0
    """Finished steps of the run."""
    stage: int = 0
    """Finished stages."""
    skipped: int = 0
    """Finished steps that were bad and changed nothing."""
    consecutive_bad: int = 0
    balance: dict[str, list[float]] = field(default_factory=dict)
    """See Balance.averages."""

    def save(self, folder: Path, config: TokenizerTrainConfig, data: str, processes: int, micro_batch: int) -> None:
        """Write run.json; data: fingerprint of the corpus."""
        description = {
            "tessera": __version__,
            "git_commit": git_commit(),
            **vars(self),
            "processes": processes,
            "micro_batch": micro_batch,
            "data": data,
            "config": config.model_dump(mode="json"),
        }
        write_json(folder / STATE_FILE, description)

    @classmethod
    def load(cls, folder: Path, config: TokenizerTrainConfig, data: str) -> TokenizerRunState:
        """Load run.json. ConfigError: the run had another config or other data."""
        found = read_json(folder / STATE_FILE)
        if config.train.micro_batch in (None, micro_batch_of(folder)):
            found["config"]["train"]["micro_batch"] = config.train.micro_batch
        check_resumable(found["config"], config, str(folder), MAY_CHANGE)
        before, now = found["config"]["stages"], config.model_dump(mode="json")["stages"]
        begun = range(min(len(before), found["stage"] + 1))
        last = max((number for number in begun if before[number]["kind"] == "train"), default=-1)
        done = found["step"] - sum(stage.get("steps", 0) for stage in before[: max(0, last)])
        for number in begun:
            if number < len(now) and number == last and _other_end(before[number], now[number]):
                if now[number]["steps"] < done:
                    raise ConfigError(
                        f"stages.{number}.steps: {now[number]['steps']}, but {done} are done ({folder}); give at least "
                        f"as many, or freeze an earlier checkpoint with: tessera export {folder.parent.parent} --step N"
                    )
            elif number >= len(now) or before[number] != now[number]:
                raise ConfigError(
                    f"stages.{number}: this run was begun with another one ({folder}); set it back, or start another "
                    "run with another --out"
                )
        if found["data"] != data:
            raise ConfigError(
                f"data: {config.data} is not what {folder} was trained on; put the old media back, or start another "
                "run with another --out"
            )
        return cls(found["step"], found["stage"], found["skipped"], found["consecutive_bad"], found["balance"])


def _other_end(before: dict, now: dict) -> bool:
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
def load_state(module: nn.Module, path: Path) -> None:
    """Load the file that `save_state` wrote."""
    if path.is_file():
        own = module.state_dict()
        for name, tensor in read_safetensors(path)[0].items():
            own[name].copy_(tensor)
