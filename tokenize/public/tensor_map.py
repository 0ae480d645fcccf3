"""Declarative map between the tensors of a public checkpoint and ours, readable in both directions.

A `TensorMap` gives for each of our tensors a term that says how it follows from theirs: `Source` is one of their
tensors, the other terms change the term inside them. Reading evaluates the terms, writing inverts them; a value that
has no inverse is refused, and its tensor named.

    Source("a")                              their tensor, of our shape
    View(Source("a"), (8, 64, 1))            their tensor has this shape, ours the same numbers in another
    Concat((Source("q"), Source("k")))       theirs one after the other along an axis (q, k, v -> qkv)
    Part("qkv", (96, 32), start=32)          ours is a piece of theirs (qkv -> q, k, v); all pieces together write it
    Permuted(Source("q"), index)             ours[i] = theirs[index[i]] along an axis (the order of rotary pairs)
    Transposed(Source("a"))                  the last two axes exchanged
    Scaled(Source("a"), 8.0)                 multiplied by a factor
    Constant(0.0)                            the checkpoint lacks it; writing requires this value
    Folded("g", "v")                         weight normalization, w = g v / |v|; written back with v = w
    Quotient("sum", "count", 1e-5)           a moving average, sum / max(count, floor); written back with count 1

Several of our tensors may read the same source (tied tables): writing then requires them to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class CannotWrite(ValueError):
    """The public layout cannot represent a value of the model."""


class Term(Protocol):
    """How a tensor follows from those of a checkpoint. `shape` is always the shape of the term's result."""

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """Names and shapes of the checkpoint's tensors that the term reads."""
        ...

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The result, from the checkpoint's tensors."""
        ...

    def write(self, value: Tensor, written: Written) -> None:
        """Add the checkpoint's tensors that this result is read from."""
        ...


@dataclass
class Written:
    """The tensors of a checkpoint while it is written."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    """Numbers of elements that no piece has filled yet, by name."""

    def put(self, name: str, value: Tensor) -> None:
        """Add a whole tensor; CannotWrite if it was written with another value."""
        held = self.tensors.setdefault(name, value.contiguous())
        if held is not value and not torch.equal(held, value):
            raise CannotWrite(f"tensor '{name}' is shared in this layout, but the model has two different ones")

    def fill(self, name: str, shape: Shape, axis: int, start: int, value: Tensor) -> None:
        """Add a piece of a tensor."""
        if name not in self.tensors:
            self.tensors[name] = value.new_zeros(shape)
            self.missing[name] = math.prod(shape)
        self.tensors[name].narrow(axis, start, value.shape[axis]).copy_(value)
        self.missing[name] -= value.numel()


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint."""

    name: str

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        return {self.name: shape}

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        return tensors[self.name]

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        written.put(self.name, value)


@dataclass(frozen=True)
class View:
    """The same numbers in another shape."""

    term: Term
    shape: Shape
    """Shape of the inner term."""

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        return self.term.sources(self.shape)

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        return self.term.read(tensors, self.shape).reshape(shape)

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        self.term.write(value.reshape(self.shape), written)


@dataclass(frozen=True)
class Concat:
    """Terms one after the other along an axis, of the given sizes or all of one size."""

    terms: tuple[Term, ...]
    sizes: tuple[int, ...] | None = None
    axis: int = 0

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        found: dict[str, Shape] = {}
        for term, part in zip(self.terms, self._shapes(shape), strict=True):
            found |= term.sources(part)
        return found

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        parts = [term.read(tensors, part) for term, part in zip(self.terms, self._shapes(shape), strict=True)]
        like = next((part for part in parts if part.numel()), parts[0])
        return torch.cat([part.to(like.dtype) for part in parts], dim=self.axis)

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        sizes = [shape[self.axis] for shape in self._shapes(tuple(value.shape))]
        for term, part in zip(self.terms, value.split(sizes, dim=self.axis), strict=True):
            term.write(part, written)

    def _shapes(self, shape: Shape) -> list[Shape]:
        sizes = self.sizes or (shape[self.axis] // len(self.terms),) * len(self.terms)
        assert sum(sizes) == shape[self.axis], (sizes, shape)
        return [(*shape[: self.axis], size, *shape[self.axis + 1 :]) for size in sizes]


@dataclass(frozen=True)
class Part:
    """A piece of a tensor of the checkpoint, from `start` along an axis."""

    name: str
    whole: Shape
    """Shape of the checkpoint's tensor."""
    start: int
    axis: int = 0

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        return {self.name: self.whole}

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        return tensors[self.name].narrow(self.axis, self.start, shape[self.axis])

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        written.fill(self.name, self.whole, self.axis, self.start, value)


@dataclass(frozen=True, eq=False)
class Permuted:
    """Result[i] = inner[index[i]] along an axis."""

    term: Term
    index: Tensor
    """A permutation, long."""
    axis: int = 0

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        return self.term.sources(shape)

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        return self.term.read(tensors, shape).index_select(self.axis, self.index)

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        self.term.write(value.index_select(self.axis, self.index.argsort()), written)


@dataclass(frozen=True)
class Transposed:
    """The last two axes exchanged."""

    term: Term

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        return self.term.sources(self._turned(shape))

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        return self.term.read(tensors, self._turned(shape)).transpose(-1, -2).contiguous()

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        self.term.write(value.transpose(-1, -2).contiguous(), written)

    @staticmethod
    def _turned(shape: Shape) -> Shape:
        return (*shape[:-2], shape[-1], shape[-2])


@dataclass(frozen=True)
class Scaled:
    """Result = factor * inner. Exact in both directions for powers of two; else up to one rounding."""

    term: Term
    factor: float

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        return self.term.sources(shape)

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        return self.term.read(tensors, shape) * self.factor

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        self.term.write(value / self.factor, written)


@dataclass(frozen=True)
class Constant:
    """A value that the checkpoint does not store."""

    value: float
    name: str = "a constant"
    """What it is, for the message when another value cannot be written."""
    required: bool = True
    """False: the value has no effect (rows that are never read), so any value is left out when writing."""

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        return {}

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        return torch.full(shape, self.value)

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        if self.required and not bool((value == self.value).all()):
            raise CannotWrite(f"{self.name} must be {self.value:g} in this layout, but the model has another value")


@dataclass(frozen=True)
class Folded:
    """Weight normalization (arXiv:1602.07868): g v / |v|, the norm taken over all axes but one; in float64.

    The original weights are not kept: written back, v is the weight itself and g its norm, which reads as the same
    weight up to rounding.
    """

    gain: str
    direction: str
    axis: int = 0

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        one = tuple(size if place == self.axis else 1 for place, size in enumerate(shape))
        return {self.gain: one, self.direction: shape}

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        direction = tensors[self.direction].to(torch.float64, copy=True)
        norm = self._norm(direction)
        return direction.mul_(tensors[self.gain]).div_(norm).to(tensors[self.direction].dtype)

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        written.put(self.gain, self._norm(value.double()).to(value.dtype))
        written.put(self.direction, value)

    def _norm(self, direction: Tensor) -> Tensor:
        others = [axis for axis in range(direction.dim()) if axis != self.axis]
        return direction.square().sum(dim=others, keepdim=True).sqrt() if others else direction.abs()


@dataclass(frozen=True)
class Quotient:
    """The vectors of a moving average: sum [V, D] / max(count [V], floor)."""

    total: str
    count: str
    floor: float

    def sources(self, shape: Shape) -> dict[str, Shape]:
        """See Term."""
        return {self.total: shape, self.count: shape[:1]}

    def read(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """See Term."""
        return tensors[self.total] / tensors[self.count].clamp_min(self.floor)[:, None]

    def write(self, value: Tensor, written: Written) -> None:
        """See Term."""
        written.put(self.total, value)
        written.put(self.count, value.new_ones(len(value)))


@dataclass(frozen=True)
class Unused:
    """A tensor that the checkpoint has and we do not read: its shape, and what is written for it."""

    shape: Shape
    value: float | str = 0.0
    """A constant, or the name of another tensor of the checkpoint whose copy it is."""
    required: bool = True
    """False: files without it are accepted, and it is not written."""


@dataclass(frozen=True)
class TensorMap:
    """The map of one model: our tensor names to terms, and what else its files hold."""

    terms: Mapping[str, Term]
    unused: Mapping[str, Unused] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    """Name prefixes of tensors that are not part of the model, such as other models in the same file."""

    def expected(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Names and shapes of the checkpoint's tensors for a model of ours with these shapes."""
        assert shapes.keys() == self.terms.keys(), shapes.keys() ^ self.terms.keys()
        found: dict[str, Shape] = {}
        for name, term in self.terms.items():
            for source, shape in term.sources(tuple(shapes[name])).items():
                assert found.setdefault(source, shape) == shape, (source, shape, found[source])
        return found | {name: unused.shape for name, unused in self.unused.items() if unused.required}

    def is_known(self, name: str) -> bool:
        """Whether a tensor may be in the file although the model does not need it."""
        return name.startswith(self.ignored) or name in self.unused

    def read(self, shapes: Mapping[str, Shape], load: Callable[[set[str]], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Our tensors. load: returns the checkpoint's tensors with these names; called for one of ours at a time. What
        the next one reads as well (parts of one tensor) is loaded once."""
        tensors, held = {}, dict[str, Tensor]()
        for name, term in self.terms.items():
            shape = tuple(shapes[name])
            wanted = term.sources(shape)
            held = {source: tensor for source, tensor in held.items() if source in wanted}
            if len(held) < len(wanted):
                held |= load(wanted.keys() - held.keys())
            tensors[name] = term.read(held, shape)
        return tensors

    def write(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The checkpoint's tensors, on the CPU. CannotWrite if it cannot represent a value; the message names it."""
        written = Written()
        for name, term in self.terms.items():
            try:
                term.write(tensors[name].detach().cpu(), written)
            except CannotWrite as error:
                raise CannotWrite(f"tensor '{name}': {error}") from None
        unfilled = [name for name, missing in written.missing.items() if missing]
        assert not unfilled, unfilled
        for name, unused in self.unused.items():
            if not unused.required:
                continue
            if isinstance(unused.value, str):
                written.tensors[name] = written.tensors[unused.value].clone()
            else:
                written.tensors[name] = torch.full(unused.shape, unused.value)
        return {name: tensor.clone() for name, tensor in written.tensors.items()}


def equal_parts(names: list[str]) -> Term:
    """Their tensors of equal size, one after the other; one name: that tensor."""
    return Source(names[0]) if len(names) == 1 else Concat(tuple(Source(name) for name in names))
