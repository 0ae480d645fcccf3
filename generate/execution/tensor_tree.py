"""Tensors and plain values in a tree of tuples, lists and dataclasses: what two steps have in common, and what not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def leaves(thing: Any) -> Iterator[Any]:
    """All of it in order; before the parts of a tuple or list comes their number."""
    if isinstance(thing, tuple | list):
        yield len(thing)
        for part in thing:
            yield from leaves(part)
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from leaves(getattr(thing, field.name))
    else:
        assert thing is None or isinstance(thing, Tensor | int | float | str), type(thing)
        yield thing


def tensors_in(thing: Any) -> list[Tensor]:
    """The tensors of it."""
    return [leaf for leaf in leaves(thing) if isinstance(leaf, Tensor)]


def signature(thing: Any) -> tuple:
    """What must be equal for two such trees to be the same but for the numbers in their tensors."""
    return tuple(
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else (type(leaf), leaf)
        for leaf in leaves(thing)
    )
