"""A sample that is begun and thrown away: whether settings fit a model can be seen before it is trained."""

from __future__ import annotations

from typing import Any

from ..lm.models.coarse_to_fine import CoarseToFine
from ..lm.models.masked import MaskedLM
from ..tokenize.spec import ImageGeometry
from .model import Model


def rehearse(model: Model, **call: Any) -> None:
    """Make the least of a sample that passes all checks of `Model.generate` and every kind of step once.

    A picture's first row (all of it where a second model refines it), two frames of sound.

    Args:
        call: arguments of `Model.stream`.
    Raises:
        ValueError: as `Model.generate`.
    """
    call["step"] = "eager"  # nothing is compiled or recorded for a model that will change
    refined = isinstance(model.lm, CoarseToFine)
    if isinstance(model.spec.geometry, ImageGeometry):
        if refined:
            model.generate(**call)
        else:
            next(model.stream(**call))
        return
    if not refined and not isinstance(model.lm, MaskedLM):
        model.stream(**call)  # what is wrong with the limits of a sample's length is said at the call
    model.generate(**call, num_frames=2)
