"""Config of the optimizer: number of steps, batch size, AdamW, and learning-rate schedule."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from ...configs.schema import BatchSize, Config, StepCount

Ratio = Annotated[float, Field(ge=0, le=1)]


class OptimizerConfig(Config):
    """Fields that `train` has in the configs of both trainers; each trainer's config sets its own defaults."""

    steps: StepCount | None
    """Optimizer steps of the whole run."""
    batch: BatchSize
    """Examples in a global batch, for any number of processes."""
    micro_batch: BatchSize | None = None
    """Examples per forward pass; null: the batch divided by the processes. Gradients of the rest are accumulated."""
    lr: PositiveFloat
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 100
    """Steps over which the learning rate rises from 0 to its peak."""
    min_lr_ratio: Ratio
    """Learning rate of the last step, as a fraction of the peak."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW for matrices and filters; vectors (norms, biases) are not decayed."""
    betas: tuple[float, float]
    """Decay rates of the two moments of AdamW."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator of AdamW."""
    clip: NonNegativeFloat = 1.0
    """Gradient clipping norm; 0 does not clip."""

    @model_validator(mode="after")
    def _check_betas(self) -> OptimizerConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, found {list(self.betas)}")
        return self
