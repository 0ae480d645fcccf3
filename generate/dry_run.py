"""Dry run of generation, which checks before training that settings fit a model."""

from __future__ import annotations

from typing import Any

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
    plan = model.lm.decode_plan
    if isinstance(model.spec.geometry, ImageGeometry):
        if plan.decoder == "coarse_to_fine":  # the first partial image shows the first stage only
            model.generate(**call)
        else:
            next(model.stream(**call))
        return
    if plan.in_order:
        model.stream(**call)  # the call checks the limits of a sample's length
    own_end = model.lm.conditions.aligned is not None  # the number of frames cannot be given
    call["max_frames" if own_end else "num_frames"] = 2
    model.generate(**call)
