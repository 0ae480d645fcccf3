"""Whether a run fits into memory, asked before anything is allocated. All numbers are lower bounds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..tokenize.memory import check_memory
from ..tokenize.vector_file import without_files

STATES = 4
"""Numbers kept for each weight: itself, its gradient and two averages of AdamW."""


def check_weights_fit(make: Callable[[], nn.Module], what: str, device: torch.device, copies: int = STATES) -> None:
    """Raise ValueError where a network that `make` makes, and what training keeps of each weight, do not fit.

    Args:
        what: the field of the config that says how large it is.
    """
    state = torch.get_rng_state()
    try:
        with torch.device("meta"), without_files():
            count = sum(parameter.numel() for parameter in make().parameters())
    except (NotImplementedError, RuntimeError):
        return  # some quantizers look at their values when they are made; those are not the large ones
    finally:
        torch.set_rng_state(state)
    check_memory(4 * copies * count, f"{what}: training {count / 1e6:.0f} M weights", "choose a smaller one", device)


def check_batch_fits(micro: int, frames: float, hidden: int, outputs: float, half: bool, device: torch.device) -> None:
    """Raise ValueError where what a forward pass keeps for the backward pass does not fit.

    Args:
        micro: items of one forward pass.
        frames: of an item.
        hidden: numbers in the hidden states of a frame: width times layers. Each layer keeps its input, queries, keys,
            values, and at least as much of its feed-forward.
        outputs: numbers that a frame is read from, or predicted.
        half: bfloat16.
    """
    size = micro * frames * (6 * hidden * (2 if half else 4) + 4 * outputs)
    advice = "choose fewer; train.micro_batch cuts a batch of train.batch items"
    check_memory(size, f"train.micro_batch: {micro} items at a time", advice, device)
