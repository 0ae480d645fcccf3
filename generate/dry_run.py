"""Dry run of generation, which checks before training that settings fit a model."""

from __future__ import annotations

from typing import Any

from ..lm.models.coarse_to_fine import CoarseToFine
from ..lm.models.masked import MaskedLM
from ..tokenize.spec import ImageGeometry
from .model import Model


def rehearse(model: Model, **call: Any) -> None:
    """Generate the smallest sample that runs all checks of `Model.generate` and every kind of step once.

    This is the first row of an image (the whole image if a second model refines it), or two frames of audio.

    Args:
        call: arguments of `Model.stream`.
    Raises:
        ValueError: as in `Model.generate`.
    """
    call["step"] = "eager"  # do not compile or capture a model that will still change
    refined = isinstance(model.lm, CoarseToFine)
    if isinstance(model.spec.geometry, ImageGeometry):
        if refined:
            model.generate(**call)
        else:
            next(model.stream(**call))
        return
    if not refined and not isinstance(model.lm, MaskedLM):
        model.stream(**call)  # the call checks the limits of a sample's length
    model.generate(**call, num_frames=2)
