"""Learning rate as a pure function of the step: linear warm-up, then half a cosine down to a floor."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Learning rate of step `step` (the first is 0).

    Rises by equal amounts to `peak` at step warmup_steps - 1 (never 0: the first step would teach nothing), then falls
    as a cosine to `peak * min_ratio` at step steps - 1 and stays there.

        peak      /-\\
                 /    \\
                /       ` - _ _ _  peak * min_ratio
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    span = max(1, steps - 1 - warmup_steps)
    done = min(1.0, (step - warmup_steps) / span)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * done)))
