"""What reading a public checkpoint would do: its tensors compared with the config, before anything is allocated.

Inside `surveying()`, the functions that build a model from a checkpoint stop with `Surveyed` once they know the config,
the tensor map and the shapes; the comparison is in the exception. So the summary of a folder (`tessera load --check`)
goes the way of reading it, whatever the system.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from .tensor_map import Shape, TensorMap

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

_active: ContextVar[bool] = ContextVar("surveying", default=False)


@dataclass(frozen=True)
class Survey:
    """The tensors of one model in a checkpoint, compared with those that its config requires."""

    config: Any
    """Config of the model as it would be built."""
    spec: Any
    """TokenSpec of a language model; None for a tokenizer."""
    shapes: Mapping[str, Shape]
    """Names and shapes of our tensors that are made of the checkpoint's."""
    read: frozenset[str]
    """Names of the checkpoint's tensors that our tensors are made of."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, Shape, Shape], ...]
    """(name, shape found, shape required)."""

    @property
    def num_values(self) -> int:
        """Number of values in our tensors."""
        return sum(prod(shape) for shape in self.shapes.values())


class Surveyed(Exception):
    """Raised in place of reading the tensors."""

    def __init__(self, survey: Survey):
        super().__init__("surveyed")
        self.survey = survey


@contextmanager
def surveying() -> Iterator[None]:
    """Within it, reading a model raises `Surveyed`."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def survey_part(
    config: Any, tensor_map: TensorMap, shapes: Mapping[str, Shape], checkpoint: Checkpoint, spec: Any = None
) -> None:
    """Raise `Surveyed` within `surveying`; else do nothing."""
    if not _active.get():
        return
    wanted, found = tensor_map.expected(shapes), checkpoint.shapes
    sources = {ours: set(term.sources(tuple(shapes[ours]))) for ours, term in tensor_map.terms.items()}
    both = sorted(wanted.keys() & found.keys())
    differ = [(name, found[name], wanted[name]) for name in both if found[name] != wanted[name]]
    raise Surveyed(
        Survey(
            config,
            spec,
            {ours: shapes[ours] for ours, names in sources.items() if names},
            frozenset(set().union(*sources.values()) & found.keys()),
            tuple(sorted(wanted.keys() - found.keys())),
            tuple(sorted(name for name in found if name not in wanted and not tensor_map.is_known(name))),
            tuple(differ),
        )
    )
