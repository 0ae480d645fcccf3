"""Engine in plain torch.

A bad step (a loss or gradient that is not finite, in any process) leaves the weights and the optimizer unchanged in all
processes: a bad loss makes its gradients NaN, and gradients are summed over the processes, so every process sees the
same NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed.process_group import ProcessGroup
from .base import OptimizerSettings, StepInfo, Trainable
from .lr_schedule import planned_rate
from .state_files import MOMENTS, EngineState


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: matrices with weight decay; vectors (norms, biases, null conditions) without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def poison_bad(loss: Tensor) -> Tensor:
    """The loss, or NaN if it is not finite, so that its gradients are NaN (those of an infinite loss can be finite)."""
    # a factor: with `where` on the loss itself, the NaN of the unused branch would reach the gradient
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


class TorchEngine:
    """AdamW on float32 weights; DistributedDataParallel for several processes.

    Args:
        objective: already on its device.
        settings: `train` of the config.
        micro_steps: calls of `backward` before each `step` in this process.
        may_skip_parts: whether a step may leave some weights without a gradient.
    """

    def __init__(
        self,
        objective: Trainable,
        settings: OptimizerSettings,
        world: ProcessGroup,
        micro_steps: int,
        may_skip_parts: bool = False,
    ):
        self.objective = objective
        self.settings = settings
        self.world = world
        self.micro_steps = micro_steps
        self.optimizer = torch.optim.AdamW(
            parameter_groups(objective, settings.weight_decay),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,  # one memory pass over weights and moments instead of six
        )
        self.steps = 0
        self._parallel = None
        if world.size > 1:
            self._parallel = DistributedDataParallel(
                objective,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                find_unused_parameters=may_skip_parts,
            )
        self.model = self._parallel or objective
        self._begin()

    def _begin(self) -> None:
        self._done = 0
        self._sync_on_next()

    def _sync_on_next(self) -> None:
        if self._parallel is not None:  # as its no_sync() does: exchange gradients only in the last micro-batch
            self._parallel.require_backward_grad_sync = self._done + 1 == self.micro_steps

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        # DDP averages over processes, but shares must be summed
        poison_bad(loss * self.world.size).backward()
        self._done += 1
        self._sync_on_next()

    def step(self) -> StepInfo:
        """See Engine."""
        assert self._done == self.micro_steps, f"{self._done} of {self.micro_steps} micro-batches before a step"
        settings = self.settings
        lr = planned_rate(settings, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = float(nn.utils.clip_grad_norm_(self.objective.parameters(), settings.clip or torch.inf))
        skipped = not math.isfinite(norm)
        if not skipped:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self._begin()
        return StepInfo(norm, lr, skipped)

    @contextmanager
    def weights(self, exact: bool = False) -> Iterator[Mapping[str, Tensor]]:
        """See Engine."""
        yield dict(self.objective.body.named_parameters())

    def collect(self) -> EngineState | None:
        """See Engine; returns the live tensors, not copies."""
        if not self.world.is_first:
            return None
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.objective.body.named_parameters()}
        moments = {
            f"{names[parameter]}.{key}": value
            for parameter, values in self.optimizer.state.items()
            for key, value in values.items()
        }
        return EngineState("torch", self.steps, {name: value for value, name in names.items()}, moments)

    def load(self, folder: Path) -> None:
        """See Engine."""
        state = EngineState.load(folder)
        self.steps = state.steps
        device = self.world.device
        with torch.no_grad():
            for name, parameter in self.objective.body.named_parameters():
                if parameter.requires_grad or name in state.weights:
                    parameter.copy_(state.weights[name])
                if not parameter.requires_grad or f"{name}.step" not in state.moments:
                    continue
                self.optimizer.state[parameter] = {
                    "step": state.moments[f"{name}.step"].to(device, copy=True),
                    **{key: state.moments[f"{name}.{key}"].to(device) for key in MOMENTS},
                }
