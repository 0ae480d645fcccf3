"""Engine on DeepSpeed (ZeRO 0 to 3). The only file that imports deepspeed.

It works around these gaps in DeepSpeed. Unknown configuration keys pass silently, so the whole configuration is
generated from ours. Its learning-rate schedules give 0 in the first step and stop on skipped steps, so lr_schedule.py
sets the rate. Stage 0 in float32 does not check for NaN, so this file does. Its checkpoints are pickles for one number
of processes, so we write our own (deepspeed_state.py) and only read DeepSpeed's, from earlier versions.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...configs.files import read_json
from ..common.checkpoint import check_pickles, restricted_loads
from ..distributed.process_group import ProcessGroup
from .base import OptimizerSettings, StepInfo, Trainable
from .config import DeepSpeedEngineConfig
from .deepspeed_state import collect_state, learning, master_weights, put_state
from .lr_schedule import planned_rate
from .state_files import EngineState
from .torch_engine import parameter_groups, poison_bad

TAG = "deepspeed"
"""Folder of DeepSpeed's own files in checkpoints of earlier versions."""


class DeepSpeedSettings(OptimizerSettings, Protocol):
    """Additional config fields that this engine reads."""

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def dtype(self) -> str: ...


class DeepSpeedEngine:
    """Engine (base.py) on DeepSpeed.

    Args:
        objective: in float32, on its device.
        config: `engine` of the run. settings: `train` of the run.
        world: a process group must exist, even for one process (join_world(always=True)).
        micro_steps: calls of `backward` before each `step` in this process.
    Raises:
        ImportError: deepspeed is not installed.
    """

    def __init__(
        self,
        objective: Trainable,
        config: DeepSpeedEngineConfig,
        settings: DeepSpeedSettings,
        world: ProcessGroup,
        micro_steps: int,
    ):
        deepspeed = _import_deepspeed(world)
        # DeepSpeed casts the weights to bfloat16 and keeps float32 master copies to update
        objective.use_autocast = False
        self.config, self.settings, self.world, self.micro_steps = config, settings, world, micro_steps
        self.objective = objective
        self.steps = self._done = 0
        optimizer = torch.optim.AdamW(
            parameter_groups(objective, settings.weight_decay),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=world.device.type == "cpu",  # one memory pass over weights and moments instead of six
        )
        with redirect_stdout(sys.stderr):
            self.engine, _, _, _ = deepspeed.initialize(
                model=objective,
                optimizer=optimizer,
                config=deepspeed_settings(config, settings, micro_steps, world.size),
                dist_init_required=False,
            )
        if settings.dtype == "bfloat16":
            for buffer in objective.buffers():  # newer versions leave them in float32, older ones do not
                if buffer.is_floating_point():
                    buffer.data = buffer.data.bfloat16()
        self.model = self.engine

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        # DeepSpeed averages over processes, but shares must be summed and not divided by the number of micro-batches
        self.engine.backward(poison_bad(loss * self.world.size), scale_wrt_gas=False)
        self._done += 1
        if self._done < self.micro_steps:
            self.engine.step()  # before the last micro-batch, this only counts

    def step(self) -> StepInfo:
        """See Engine."""
        assert self._done == self.micro_steps, f"{self._done} of {self.micro_steps} micro-batches before a step"
        settings = self.settings
        lr = planned_rate(settings, self.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        norm = self._clip() if is_plain(self.config, settings) else None
        if norm is not None and not math.isfinite(norm):
            self.engine.zero_grad()  # AdamW ignores weights without a gradient
        self.engine.step()
        if norm is None:
            norm = float(self.engine.get_global_grad_norm())
        self.steps += 1
        self._done = 0
        overflow = bool(getattr(self.engine.optimizer, "overflow", False))
        return StepInfo(norm, lr, skipped=overflow or not math.isfinite(norm))

    def _clip(self) -> float:
        """Clip the gradients; returns their norm before clipping."""
        return float(nn.utils.clip_grad_norm_(self.objective.parameters(), self.settings.clip or math.inf))

    @contextmanager
    def weights(self, exact: bool = False) -> Iterator[Mapping[str, Tensor]]:
        """See Engine."""
        named = dict(learning(self.objective.body))
        if exact and self.settings.dtype != "float32":
            yield master_weights(self.engine, self.objective.body, self.config.zero_stage)
            return
        with ExitStack() as stack:
            if self.config.zero_stage == 3:
                import deepspeed

                stack.enter_context(deepspeed.zero.GatheredParameters(list(named.values())))
            yield named

    def collect(self) -> EngineState | None:
        """See Engine."""
        return collect_state(
            self.engine, self.objective.body, self.config.zero_stage, self.steps, keep=self.world.is_first
        )

    def load(self, folder: Path) -> None:
        """See Engine.

        Raises:
            ValueError: DeepSpeed's own files, of an earlier version, would run code when unpickled, or were saved with
                another number of processes or ZeRO stage.
        """
        if (folder / TAG).is_dir():
            self._load_own(folder)
            return
        state = EngineState.load(folder)
        put_state(self.engine, self.objective.body, self.config.zero_stage, state)
        self.steps = state.steps

    def _load_own(self, folder: Path) -> None:
        """Load DeepSpeed's own files in folder/deepspeed, saved by earlier versions."""
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        check_pickles(folder)
        found = read_json(folder / "engine.json")
        stage = self.config.zero_stage
        if found["zero_stage"] != stage or (found["processes"] != self.world.size and stage > 0):
            raise ValueError(
                f"{folder}: saved by an earlier version, by {found['processes']} processes with ZeRO "
                f"{found['zero_stage']}; this run has {self.world.size} with ZeRO {stage}; resume once with "
                "those; any number of processes can read the next checkpoint"
            )
        with restricted_loads([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            path, _ = self.engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
        if path is None:
            raise ValueError(f"{folder}: DeepSpeed found no checkpoint there")
        self.steps = int(found["steps"])


def is_plain(config: DeepSpeedEngineConfig, settings: DeepSpeedSettings) -> bool:
    """Stage 0 in float32: DeepSpeed runs plain AdamW without checking the gradients."""
    return config.zero_stage == 0 and settings.dtype == "float32"


def deepspeed_settings(
    config: DeepSpeedEngineConfig, settings: DeepSpeedSettings, micro_steps: int, world_size: int
) -> dict[str, Any]:
    """The complete DeepSpeed configuration."""
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "reduce_bucket_size": config.bucket_elements,
        "allgather_bucket_size": config.bucket_elements,
        "overlap_comm": config.overlap_comm,
    }
    if config.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": config.bucket_elements,
            "stage3_param_persistence_threshold": config.persistence_elements,
        }
    return {
        "train_batch_size": settings.batch,
        "train_micro_batch_size_per_gpu": settings.batch // micro_steps // world_size,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": 0.0 if is_plain(config, settings) else settings.clip,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "zero_optimization": zero,
        "checkpoint": {"tag_validation": "Fail"},
        "steps_per_print": sys.maxsize,
    }


def _import_deepspeed(world: ProcessGroup) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.device.index or 0))  # DeepSpeed reads this even without a launcher
    try:
        import deepspeed
    except ImportError as error:
        raise ImportError(
            f"engine kind 'deepspeed' needs the package deepspeed ({error}); "
            "pip install deepspeed, or set engine.kind=torch"
        ) from None
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)  # stdout is for data
    # DeepSpeed compiles its CPU all-reduce on first use (half a minute, needs a compiler); gloo does the same job.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
