"""Runs decode steps eagerly, compiled, or as CUDA graphs, and caches compiled and captured steps.

A compiled or captured step is a `CapturedStep`. It works on the tensors of the generation it was created for; a later
generation whose step differs only in tensor values copies its values there and uses those tensors. Lengths are rounded
(lm/models/shape_buckets.py), and any captured step with enough capacity can be reused, so another number of frames,
another prompt or another text needs no new one.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Literal

import torch

from ...lm.kernels.weight_versions import structure_of
from ...lm.models.causal import TokenLM
from ...lm.models.shape_buckets import bucket
from .cuda_graph import recorded
from .decode_step import DecodeStep
from .tensor_tree import signature, tensors_in
from .torch_compile import compiled

StepName = Literal["auto", "eager", "compiled", "graph"]

Make = Callable[[DecodeStep], "list[Callable[[], object]]"]
"""Compiles or captures a step: returns one call per phase of the head, each of which runs one step. The values of the
step's tensors are preserved."""

MAKERS: dict[str, Make] = {"compiled": compiled, "graph": recorded}

MOST_KEPT = 8
"""Maximum number of captured steps per model; beyond it, the least recently used one is dropped."""


def choose_step_kind(name: StepName, lm: TokenLM, drafts: bool) -> str:
    """ "eager", or a key of MAKERS. auto: graph on CUDA, otherwise eager.

    Raises:
        ValueError: an unknown name, a graph without CUDA, or drafts or autocast with any steps but eager ones.
    """
    known = ("auto", "eager", *MAKERS)
    if name not in known:
        raise ValueError(f"step must be one of {', '.join(known)}, found {name!r}")
    autocast = torch.is_autocast_enabled(lm.device.type)
    if name == "auto":
        graph = lm.device.type == "cuda" and not (drafts or autocast or programs_of(lm).refused)
        return "graph" if graph else "eager"
    if autocast and name != "eager":
        raise ValueError(f"step is '{name}' under autocast; load the model in that dtype instead, or use eager")
    if drafts and name != "eager":
        raise ValueError(f"step is '{name}', but drafted steps differ in length; leave draft out, or use step eager")
    if name == "graph" and lm.device.type != "cuda":
        raise ValueError(f"step is 'graph', which needs a CUDA device; the model is on '{lm.device}'; use compiled")
    return name


class CapturedStep:
    """A compiled or captured step with its own tensors."""

    def __init__(self, step: DecodeStep, key: tuple, make: Make):
        self.step, self.key = step, key
        self.calls = make(step)
        self.owner: weakref.ref | None = None

    @property
    def idle(self) -> bool:
        """Whether no generation uses it."""
        return self.owner is None or self.owner() is None

    def load(self, step: DecodeStep) -> None:
        """Copy the tensor values of a step with the same key."""
        for mine, theirs in zip(tensors_in(self.step.parts()), tensors_in(step.parts()), strict=True):
            mine.copy_(theirs)


class Programs:
    """The captured steps of a model, most recently used last."""

    def __init__(self) -> None:
        self.kept: list[CapturedStep] = []
        self.refused = ""
        """Why graph capture failed; "": it did not fail, or was not tried."""

    def capacity(self, rows: int, steps: int) -> int:
        """Capacity in steps: that of a cached captured step if one is large enough, otherwise the bucket size."""
        found = [program.step.buffers.columns.shape[2] - 1 for program in self.kept if program.key[1] == rows]
        return min((capacity for capacity in found if capacity >= steps), default=bucket(steps))

    def take(self, owner: object, step: DecodeStep, kind: str) -> CapturedStep:
        """The captured step for a step, created if necessary; it belongs to the owner for the owner's lifetime."""
        key = (kind, step.buffers.num_rows, _weights(step.lm), signature(step.parts()))
        self.kept = [program for program in self.kept if program.key[2] == key[2]]  # drop those of other weights
        program = next((program for program in self.kept if program.idle and program.key == key), None)
        if program is None:
            program = CapturedStep(step, key, MAKERS[kind])
        else:
            program.load(step)
            self.kept.remove(program)
        self.kept.append(program)
        program.owner = weakref.ref(owner)
        while len(self.kept) > MOST_KEPT:
            self.kept.pop(0)
        return program

    def take_graph(self, owner: object, step: DecodeStep, kind: str) -> CapturedStep | None:
        """`take` for step "auto": returns None, with a warning, if no graph can be captured."""
        try:
            return self.take(owner, step, kind)
        except RuntimeError as error:
            self.refused = str(error).strip().splitlines()[0]
            warnings.warn(f"steps run one by one: no CUDA graph could be recorded ({self.refused})", stacklevel=2)
            return None

    def __deepcopy__(self, memo: dict) -> Programs:
        return Programs()  # a copy of the model has other weights

    def __reduce__(self) -> tuple:
        return Programs, ()


def programs_of(lm: TokenLM) -> Programs:
    """The model's captured steps, which live as long as it."""
    if lm.programs is None:
        lm.programs = Programs()
    return lm.programs


def _weights(lm: TokenLM) -> int:
    """A hash that changes when weights are moved or modules replaced, but not when weight values change: captured steps
    read the weights in place."""
    tensors = [*lm.parameters(), *lm.buffers()]
    where = tuple((tensor.data_ptr(), tensor.dtype, tensor.device) for tensor in tensors)
    return hash((where, structure_of(lm)))
