"""CUDA graphs: a whole step recorded once and played again with one call, sampling and end rule included.

Op by op a step is hundreds of kernels, each launched from Python, and a small model waits for the launches. A recorded
step is launched at once. It reads and writes the same memory each time: the tensors of the step, which hold its number
too, so that nothing has to be handed over and only `done` looks at the device, now and then.
Source: torch.cuda.graph; the warm-up on a stream of its own is what its documentation asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from .decode_step import DecodeStep
from .tensor_tree import tensors_in

WARM_UPS = 2
"""Runs before the recording: libraries set themselves up, lazily made tensors are made."""


def recorded(step: DecodeStep, calls: Sequence[Callable[[], object]] = ()) -> list[Callable[[], object]]:
    """For each phase of the head a call that plays one recorded step; see `programs.Make`.

    Args:
        calls: what makes a step in each phase; none: the step's own `advance`.
    Raises:
        RuntimeError: something in the step cannot be recorded.
    """
    calls = calls or [partial(step.advance, phase) for phase in range(step.period)]
    held = tensors_in(step.parts())
    saved = [tensor.clone() for tensor in held]

    def restore() -> None:
        for tensor, value in zip(held, saved, strict=True):
            tensor.copy_(value)

    device = step.board.step.device
    with torch.cuda.device(device), torch.no_grad():
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for call in [*calls] * WARM_UPS:
                call()
                restore()  # before the next run: a step may not be behind the last, nor be counted twice
        torch.cuda.current_stream(device).wait_stream(aside)
        graphs, pool = [], None
        for call in calls:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                call()
            pool = graph.pool()
            graphs.append(graph)
        restore()
    return [graph.replay for graph in graphs]
