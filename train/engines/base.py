"""What an engine is, and what it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from .state_files import EngineState


class Trainable(nn.Module):
    """What an engine trains: called, it gives what a loss is made from."""

    use_autocast: bool
    """Whether the forward pass runs under autocast in bfloat16; an engine that casts by itself turns it off."""

    @property
    def body(self) -> nn.Module:
        """What is trained; checkpoints have its weights by their names in it."""
        raise AssertionError("each objective has a body")


class OptimizerSettings(Protocol):
    """What an engine reads of a config; see the fields of TrainSettings in train/lm/config.py."""

    @property
    def steps(self) -> int | None: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def min_lr_ratio(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def clip(self) -> float: ...


@dataclass(frozen=True)
class StepInfo:
    """What an optimizer step did."""

    grad_norm: float
    """Norm of the gradient of the whole batch before clipping; not finite when the step was skipped."""
    lr: float
    skipped: bool
    """True when the step was bad: nothing was changed."""


class Engine(Protocol):
    """Forward through `model` (called as the objective), backward for each micro-batch, then step."""

    model: Callable[..., Any]

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's share of the loss (see Objective)."""
        ...

    def step(self) -> StepInfo:
        """One optimizer step on the sum of the gradients of all micro-batches and processes."""
        ...

    def collect(self) -> EngineState | None:
        """The state to save, in the first process, until the next step; all processes call it, others get None."""
        ...

    def load(self, folder: Path) -> None:
        """Read a state that any engine saved, with any number of processes; all processes call it."""
        ...

    def weights(self, exact: bool = False) -> AbstractContextManager[Mapping[str, Tensor]]:
        """The body's weights by name, whole in every process while open; exact: the float32 ones of the optimizer."""
        ...
