"""The model of a command, with advice where other weights would be much faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..configs.printable import say
from .option_groups import ModelOptions

if TYPE_CHECKING:
    from ..generate.model import Model

LARGE = 1 << 30
"""Bytes of weights from which reading them takes most of a step."""


def open_model(model: str, loading: ModelOptions, lexicon: Path | None = None) -> Model:
    """`load` with the options of a command. Raises as `load`."""
    from ..generate.loading import load

    loaded = load(model, loading.device, weights=loading.weights, adapter=loading.adapter, lexicon=lexicon)  # pyright: ignore[reportArgumentType]
    if loading.weights is None:
        advise(loaded)
    return loaded


def advise(loaded: Model) -> None:
    """Print a line on stderr if the weights are large and in float32 on a CPU."""
    import torch

    from ..configs.memory import in_words

    wide = [each for each in loaded.lm.parameters() if each.dtype == torch.float32 and each.device.type == "cpu"]
    size = sum(each.nbytes for each in wide)
    if size >= LARGE:
        say(
            f"the weights take {in_words(size)} in float32, and every step reads them; --weights bfloat16 (or int8) "
            "takes half (a quarter) of the memory and is two (four) times as fast"
        )
