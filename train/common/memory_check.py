"""Checks that a run fits into memory before anything is allocated. All sizes are lower bounds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ...configs.memory import check_memory, is_out_of_memory

STATES = 4
"""Values kept per weight: itself, its gradient and two AdamW moments."""


def count_numbers(make: Callable[[], nn.Module], what: str) -> int:
    """Values that training keeps for the network built by `make`, counted without allocating it.

    Raises ValueError, which begins with `what`, if a tensor is larger than any memory. Returns 0 if the count is
    unknown: some quantizers read their values during construction.
    """
    state = torch.get_rng_state()
    try:
        with torch.device("meta"):
            net = make()
    except (NotImplementedError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise ValueError(f"{what}: one of its tensors is larger than any memory; choose smaller sizes") from None
        return 0
    finally:
        torch.set_rng_state(state)
    return sum(STATES * one.numel() for one in net.parameters()) + sum(one.numel() for one in net.buffers())


def check_weights_fit(numbers: int, what: str, device: torch.device, all_learn: bool = True) -> None:
    """Raise ValueError, which begins with `what`, if this many values (see `count_numbers`) do not fit; if not all
    weights learn, the weights alone."""
    check_memory(
        4 * numbers // (1 if all_learn else STATES),
        f"{what}: training {numbers / STATES / 1e6:.0f} M weights",
        "choose smaller sizes",
        device,
    )


def check_batch_fits(micro: int, frames: float, hidden: int, outputs: float, half: bool, device: torch.device) -> None:
    """Raise ValueError if the activations kept for the backward pass do not fit.

    Args:
        micro: examples per forward pass.
        frames: per example.
        hidden: hidden values per frame: width times layers. Each layer keeps its input, queries, keys, values, and at
            least as much for its feed-forward network.
        outputs: values per frame that are read or predicted.
        half: bfloat16.
    """
    size = micro * frames * (6 * hidden * (2 if half else 4) + 4 * outputs)
    advice = "choose fewer; train.micro_batch cuts a batch of train.batch items"
    check_memory(size, f"train.micro_batch: {micro} items at a time", advice, device)
