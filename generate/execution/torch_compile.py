"""Compiles a whole decode step with torch.compile; on CUDA the result is also captured as a graph.

Compilation takes tens of seconds, once for each kind of step (see step_runner.py); `Model.warmup` does it in advance.
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
    """For each phase of the head, a call that runs one compiled step; see `step_runner.Make`.

    Each call has its own code object, because torch limits recompilations of one code object to eight. Except on CUDA,
    nothing is compiled before the first call.
    """
    torch.compiler.assume_constant_result(cpu_gemv.why_not)  # not traceable: it loads a library
    calls = [_compiled(step, phase) for phase in range(step.period)]
    return recorded(step, calls) if step.buffers.step.device.type == "cuda" else calls


def _compiled(step: DecodeStep, phase: int) -> Callable[[], object]:
    def advance() -> None:
        step.advance(phase)

    own = FunctionType(
        advance.__code__.replace(co_name=f"advance_{phase}"), advance.__globals__, closure=advance.__closure__
    )
    return partial(_run, torch.compile(own, fullgraph=True, dynamic=False, backend=BACKEND))


def _run(advance: Callable[[], object]) -> None:
    from torch._dynamo.exc import BackendCompilerFailed  # the first import takes a second, like torch.compile

    with torch.no_grad():
        try:
            advance()
        except BackendCompilerFailed as error:  # no C++ compiler, for instance
            reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"step is 'compiled', which torch does not support here ({reason}); use step eager"
            ) from error
