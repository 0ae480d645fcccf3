"""The compiled way of running steps: the whole step through torch.compile, on CUDA recorded as a graph as well.

Compiling takes tens of seconds, once for each kind of step (see step_runner.py); `Model.warmup` does it ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType

import torch

from ...lm.kernels import cpu_gemv
from .cuda_graph import recorded
from .decode_step import DecodeStep

BACKEND = "inductor"


def compiled(step: DecodeStep) -> list[Callable[[], object]]:
    """For each phase of the head a call that makes one compiled step; see `programs.Make`.

    Each has code of its own, as torch counts how often one piece of code is compiled and gives up at eight. Nothing is
    compiled before the first call, save on CUDA.
    """
    torch.compiler.assume_constant_result(cpu_gemv.why_not)  # nothing to trace: it loads a library
    calls = [_compiled(step, phase) for phase in range(step.period)]
    return recorded(step, calls) if step.board.step.device.type == "cuda" else calls


def _compiled(step: DecodeStep, phase: int) -> Callable[[], object]:
    def advance() -> None:
        step.advance(phase)

    own = FunctionType(
        advance.__code__.replace(co_name=f"advance_{phase}"), advance.__globals__, closure=advance.__closure__
    )
    return partial(_run, torch.compile(own, fullgraph=True, dynamic=False, backend=BACKEND))


def _run(advance: Callable[[], object]) -> None:
    from torch._dynamo.exc import BackendCompilerFailed  # takes a second, once, as torch.compile does

    with torch.no_grad():
        try:
            advance()
        except BackendCompilerFailed as error:  # no C++ compiler, for instance
            reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"step is 'compiled', which torch could not do here ({reason}); use step eager") from error
