"""The `engine` of a config: which engine trains, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from ...configs.schema import Config


class AutoEngineConfig(Config):
    """DeepSpeed where it is installed and not slower on this device and number of processes, else plain torch; a run
    that is gone on with keeps its engine (train/engines/auto.py)."""

    kind: Literal["auto"] = "auto"


class TorchEngineConfig(Config):
    """Plain torch; several processes hold equal copies (DistributedDataParallel)."""

    kind: Literal["torch"] = "torch"
    because: str | None = None
    """Written by kind auto: why it took this engine."""


class DeepSpeedEngineConfig(Config):
    """DeepSpeed with ZeRO; the whole DeepSpeed configuration is made from this and from `train`."""

    kind: Literal["deepspeed"] = "deepspeed"
    zero_stage: int = Field(1, ge=0, le=3)
    """What is divided among the processes: 0 nothing, 1 optimizer state, 2 and gradients, 3 and weights."""
    bucket_elements: PositiveInt = 50_000_000
    """Numbers exchanged at once."""
    overlap_comm: bool = False
    """Exchange gradients while the backward pass goes on (GPUs)."""
    persistence_elements: NonNegativeInt = 100_000
    """Stage 3: weights smaller than this are kept whole in every process."""
    because: str | None = None
    """Written by kind auto: why it took this engine."""


EngineConfig = Annotated[AutoEngineConfig | TorchEngineConfig | DeepSpeedEngineConfig, Field(discriminator="kind")]


class EngineHolder(Config):
    """An engine's config alone."""

    engine: EngineConfig
