"""Averages of the weights in Lightning checkpoints: `model_ema.encoderconv_inweight` of `encoder.conv_in.weight`.

Source: LitEma of CompVis/latent-diffusion (MIT), which SEED-Voken uses as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..tensor_map import Shape, TensorMap, Term, Unused

AVERAGES = "model_ema."


def averaged_name(name: str) -> str:
    """Name of the average of a weight."""
    return AVERAGES + name.replace(".", "")


def with_averages(terms: Mapping[str, Term], weights: Mapping[str, Shape], ignored: tuple[str, ...]) -> TensorMap:
    """The map of a model that is read from the averages. weights: names and shapes of the weights that were trained,
    which are not read; they are written as copies of the averages."""
    unused = {name: Unused(shape, averaged_name(name)) for name, shape in weights.items()}
    unused |= {f"{AVERAGES}{name}": Unused((), value) for name, value in (("decay", 0.9999), ("num_updates", 0.0))}
    return TensorMap(terms, unused, ignored=(*ignored, f"{AVERAGES}loss"))
