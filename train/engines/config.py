"""Config of the training engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from ...configs.schema import Config


class AutoEngineConfig(Config):
    """DeepSpeed if it is installed and not slower on this device and number of processes, else plain torch; a resumed
    run keeps its engine (train/engines/auto.py)."""

    kind: Literal["auto"] = "auto"


class TorchEngineConfig(Config):
    """Plain torch; several processes hold identical replicas (DistributedDataParallel)."""

    kind: Literal["torch"] = "torch"
    because: str | None = None
    """Set by kind auto: reason for the choice."""


class DeepSpeedEngineConfig(Config):
    """DeepSpeed with ZeRO; the whole DeepSpeed configuration is derived from this and from `train`."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: int = Field(1, ge=0, le=3)
    """What is partitioned among the processes: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights."""
    bucket_elements: PositiveInt = 50_000_000
    """Numbers exchanged among the processes at once."""
    overlap_comm: bool = False
    """Exchange gradients during the backward pass (GPUs)."""
    persistence_elements: NonNegativeInt = 100_000
    """Stage 3: weights smaller than this are replicated in every process."""
    because: str | None = None
    """Set by kind auto: reason for the choice."""


EngineConfig = Annotated[AutoEngineConfig | TorchEngineConfig | DeepSpeedEngineConfig, Field(discriminator="kind")]


class EngineHolder(Config):
    """Config that holds only an engine."""

    engine: EngineConfig
