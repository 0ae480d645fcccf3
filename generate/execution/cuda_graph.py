"""CUDA graphs: captures a whole decode step, including sampling and the end rule, and replays it with one call.

An eager step launches hundreds of kernels from Python, and a small model is bound by these launches. A captured step
needs a single launch. It reads and writes the same memory each time: the tensors of the step, including its number.
Nothing has to be passed in, and only `done` synchronizes with the device, now and then.
Source: torch.cuda.graph; its documentation asks for the warm-up on a side stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from .decode_step import DecodeStep
from .tensor_tree import tensors_in

WARM_UPS = 2
"""Runs before the capture, in which libraries initialize and lazy tensors are allocated."""


def recorded(step: DecodeStep, calls: Sequence[Callable[[], object]] = ()) -> list[Callable[[], object]]:
    """For each phase of the head, a call that replays one captured step; see `step_runner.Make`.

    Args:
        calls: the functions to capture, one per phase; empty: the step's `advance`.
    Raises:
        RuntimeError: the step cannot be captured.
    """
    calls = calls or [partial(step.advance, phase) for phase in range(step.period)]
    held = tensors_in(step.parts())
    saved = [tensor.clone() for tensor in held]

    def restore() -> None:
        for tensor, value in zip(held, saved, strict=True):
            tensor.copy_(value)

    device = step.buffers.step.device
    with torch.cuda.device(device), torch.no_grad():
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for call in [*calls] * WARM_UPS:
                call()
                restore()  # before the next run: a step must not pass the last one or be counted twice
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
