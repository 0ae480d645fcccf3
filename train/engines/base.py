"""Interface of training engines and of the modules they train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from .state_files import EngineState


class Trainable(nn.Module):
    """Module that an engine trains; its forward pass returns the loss or its parts."""

    use_autocast: bool
    """Whether the forward pass uses bfloat16 autocast; an engine that casts the weights itself turns it off."""

    @property
    def body(self) -> nn.Module:
        """The trained network; checkpoints store its weights under their names in this module."""
        raise AssertionError("each objective has a module")


class OptimizerSettings(Protocol):
    """Config fields that an engine reads; see TrainSettings in train/lm/config.py."""

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
    """Result of an optimizer step."""

    grad_norm: float
    """Gradient norm of the whole batch before clipping; not finite if the step was skipped."""
    lr: float
    skipped: bool
    """True if the loss or gradient was not finite; nothing changed."""


class Engine(Protocol):
    """Call `model` like the objective, `backward` for each micro-batch, then `step`."""

    model: Callable[..., Any]

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch's share of the loss (see Objective)."""
        ...

    def step(self) -> StepInfo:
        """Run one optimizer step on the gradients summed over all micro-batches and processes."""
        ...

    def collect(self) -> EngineState | None:
        """State to save, at least of the weights that learn, valid until the next step; all processes call this, and
        all but the first get None."""
        ...

    def load(self, folder: Path) -> None:
        """Load a state saved by any engine with any number of processes; all processes call this. Weights that do not
        learn may be missing in it, and keep their values."""
        ...

    def weights(self, exact: bool = False) -> AbstractContextManager[Mapping[str, Tensor]]:
        """The body's full weights by name, at least those that learn, in every process while open; exact: the
        optimizer's float32 copies."""
        ...
