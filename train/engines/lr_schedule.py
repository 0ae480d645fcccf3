"""Learning rate as a pure function of the step: linear warm-up, then half a cosine down to a floor.

A resumed run with a different last step follows the schedule for the new end from there on, as if it had been planned
from the beginning: a later end raises the rate at once, an earlier one lowers it. So the rate depends only on the step
and the end, and the last step is always at the floor.
"""

from __future__ import annotations

import math

from .base import OptimizerSettings


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Learning rate of step `step` (the first is 0).

    Rises linearly to `peak` at step warmup_steps - 1 (never 0, which would waste the first step), then falls along a
    cosine to `peak * min_ratio` at step steps - 1 and stays there.

        peak      /-\\
                 /    \\
                /       ` - _ _ _  peak * min_ratio
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    span = max(1, steps - 1 - warmup_steps)
    done = min(1.0, (step - warmup_steps) / span)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * done)))


def planned_rate(settings: OptimizerSettings, step: int) -> float:
    """Learning rate of step `step` (the first is 0) under the settings of a run or stage."""
    return learning_rate(
        step,
        peak=settings.lr,
        steps=settings.steps or 0,
        warmup_steps=settings.warmup_steps,
        min_ratio=settings.min_lr_ratio,
    )


def describe_new_end(
    what: str, step: int, old: int, new: int, *, peak: float, warmup_steps: int, min_ratio: float
) -> str:
    """Describe for the log how a new end changes a run or a stage.

    Args:
        what: name of the setting.
        step: finished steps. old, new: the end as planned before and now.
    """
    if step >= new:
        return f"{what} {old} -> {new}: all of them are done, training ends here"
    before, after, last = (
        learning_rate(at, peak=peak, steps=end, warmup_steps=warmup_steps, min_ratio=min_ratio)
        for at, end in ((step, old), (step, new), (new - 1, new))
    )
    return (
        f"{what} {old} -> {new}: from step {step + 1} on the learning rate is that of a run of {new} steps, "
        f"{after:.3g} where it was {before:.3g}, and falls to {last:.3g} in the last step"
    )
