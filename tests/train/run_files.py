"""What two runs are compared by, and runs that die at a given step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tessera.train.common.metrics import read_metrics
from tessera.train.common.trainer import Trainer


@contextmanager
def killed_at(trainer: type[Trainer], step: int) -> Iterator[None]:
    """The run inside dies before step `step` (the first is 0)."""
    train_step = trainer.train_step

    def dies(self, stop):
        if self.state.step == step:
            raise RuntimeError("killed")
        return train_step(self, stop)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(trainer, "train_step", dies)
        yield


@contextmanager
def before_step(trainer: type[Trainer], step: int, act) -> Iterator[None]:
    """Call `act` before step `step` of the run inside."""
    train_step = trainer.train_step

    def acts(self, stop):
        if self.state.step == step:
            act()
        return train_step(self, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", acts)
        yield


def curve(folder: Path) -> list[dict]:
    """All lines of metrics.jsonl, without the speed."""
    speed = ("tokens_per_second", "seconds")
    return [{name: value for name, value in line.items() if name not in speed} for line in read_metrics(folder)]


def last_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint: weights, optimizer, averages, buffers and discriminators of a tokenizer."""
    newest = sorted((folder / "steps").glob("step-*"))[-1]
    return {
        f"{path.relative_to(newest)}.{name}": tensor
        for path in newest.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def exported(folder: Path) -> dict[str, bytes]:
    """The tensor files of the finished model or tokenizer."""
    model = folder / "model" if (folder / "model").exists() else folder
    return {path.name: path.read_bytes() for path in model.glob("*.safetensors")}


def assert_same_run(first: Path, second: Path) -> None:
    """Two runs have the same losses, the same last checkpoint and the same model, bit for bit."""
    assert curve(first) == curve(second)
    one, two = last_checkpoint(first), last_checkpoint(second)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert exported(first) and exported(first) == exported(second)
