"""The verdict on a claim, by one rule for all rows, fixed before anything was measured.

    shown                      the difference has the claimed sign with every seed, and its mean is more than twice its
                               standard error
    contradicted               it has the opposite sign with every seed
    not shown at this scale    else

Both sides of a row are trained with the same seeds; a difference is that of the two trainings of one seed. A claim that
the system is "near" the baseline is one of the sign of what is left of the margin, and it is shown only if the margin
could have failed: an obviously worse choice must be beyond it with every seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

Wanted = Literal["higher", "lower", "near"]
SHOWN, CONTRADICTED, NOT_SHOWN = "shown", "contradicted", "not shown at this scale"
STANDARD_ERRORS = 2
"""The mean difference must exceed this many standard errors of it."""


def claimed(wanted: Wanted, own: Sequence[float], baseline: Sequence[float], margin: float = 0.0) -> list[float]:
    """The difference with each seed, positive where it has the claimed sign.

    Args:
        own, baseline: figures of the two sides, seed by seed.
        margin: with "near", the share of the baseline's figure by which the system's may be higher.
    Raises:
        ValueError: the sides have different numbers of seeds, or fewer than two.
    """
    if len(own) != len(baseline) or len(own) < 2:
        raise ValueError(
            f"a verdict needs at least two seeds, the same on both sides; found {len(own)} and {len(baseline)} figures"
        )
    if wanted == "higher":
        return [a - b for a, b in zip(own, baseline, strict=True)]
    if wanted == "lower":
        return [b - a for a, b in zip(own, baseline, strict=True)]
    return [(1 + margin) * b - a for a, b in zip(own, baseline, strict=True)]


def judge(differences: Sequence[float]) -> str:
    """The rule, for differences that are positive where they have the claimed sign."""
    if all(difference < 0 for difference in differences):
        return CONTRADICTED
    if all(difference > 0 for difference in differences) and above_error(differences):
        return SHOWN
    return NOT_SHOWN


def above_error(differences: Sequence[float]) -> bool:
    """Whether the mean exceeds STANDARD_ERRORS of its standard errors."""
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences) > STANDARD_ERRORS * error


def verdict(
    wanted: Wanted,
    own: Sequence[float],
    baseline: Sequence[float],
    margin: float = 0.0,
    worse: Sequence[float] | None = None,
) -> str:
    """SHOWN, CONTRADICTED or NOT_SHOWN.

    Args:
        worse: with "near", figures of the obviously worse choice. ValueError if they are missing there.
    """
    found = judge(claimed(wanted, own, baseline, margin))
    if wanted != "near":
        return found
    if worse is None:
        raise ValueError("a claim that the system is near the baseline needs the figures of a worse choice")
    could_fail = judge(claimed("near", worse, baseline, margin)) == CONTRADICTED
    return found if could_fail or found != SHOWN else NOT_SHOWN
