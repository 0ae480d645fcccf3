"""Traverses trees of tuples, lists and dataclasses that hold tensors and plain values, to compare two steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def leaves(thing: Any) -> Iterator[Any]:
    """All tensors and values in order; the length of a tuple or list precedes its elements."""
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
    """The tensors of the tree."""
    return [leaf for leaf in leaves(thing) if isinstance(leaf, Tensor)]


def signature(thing: Any) -> tuple:
    """A key that is equal for two trees that differ only in tensor values."""
    return tuple(
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else (type(leaf), leaf)
        for leaf in leaves(thing)
    )
