"""Parallel quantizers, each on its own channel range; the value is the sum of their outputs.

A branch reads all channels or a range of them (a network can concatenate features of several depths, or of a teacher),
at every position or with a stride, and writes to the channels it reads:

    semantic   channels 0..D     vq                        + -> value           Mimi: both read the same, and are added
    acoustic   channels 0..D     residual of 7 vq          |

    semantic   channels 0..D/2   vq        FQGAN, DualToken: ranges side by side, no range read twice
    detail     channels D/2..D   vq

Source: Mimi, arXiv:2410.00037; FQGAN, arXiv:2411.16681. For quantizing the residual of another, see residual.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from ....configs.schema import Config, ConfigError
from ..base import MakeQuantizer, Quantizer, QuantizerOutput, add_losses, join_tables, rates_of
from ..regularization import disentangle
from .residual import common_span
from .strided import StrideConfig

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class BranchConfig(Config):
    """One of the parallel quantizers."""

    source: tuple[NonNegativeInt, PositiveInt] | None = None
    """Channel range [first, end); null: all channels."""
    stride: PositiveInt = 1
    """Number of adjacent positions that share a code."""
    quantizer: QuantizerConfig
    """Quantizer of this branch."""


class BranchesConfig(Config):
    """Named branches; their codes are concatenated in this order."""

    kind: Literal["branches"] = "branches"
    branches: Annotated[dict[str, BranchConfig], Field(min_length=1)]
    """Branch name -> branch, in the order of the codes."""
    disentangle: NonNegativeFloat = 0.0
    """Weight of the squared cosine between the code vectors of two branches, averaged over pairs."""


class BranchesQuantizer(Quantizer):
    """Parallel branches whose outputs are added. Q is the sum over branches."""

    def __init__(self, config: BranchesConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        parts = {}
        ranges = []
        for name, branch in config.branches.items():
            here = f"{where}.branches.{name}"
            if not name.isidentifier():
                raise ConfigError(f"{here}: a branch's name must be letters, digits and _, like 'semantic'")
            first, end = branch.source or (0, dim)
            if not first < end <= dim:
                raise ConfigError(f"{here}.source: channels {first} to {end} are beyond the {dim} latent channels")
            inner = branch.quantizer
            if branch.stride > 1:
                inner = StrideConfig(every=branch.stride, quantizer=inner)
            parts[name] = make(inner, end - first, depth, f"{here}.quantizer")
            ranges.append((first, end))
        super().__init__(dim, list(parts.values()))
        unread = sorted(set(range(dim)) - {channel for first, end in ranges for channel in range(first, end)})
        if unread:
            raise ConfigError(f"{where}.branches: no branch reads channel {unread[0]}; widen a source")
        if config.disentangle and len({end - first for first, end in ranges}) > 1:
            raise ConfigError(
                f"{where}.disentangle: the branches have different widths, so the angle between their codes is "
                "undefined"
            )
        self.config = config
        self.ranges = ranges
        self.branches = nn.ModuleDict(parts)
        self.span = common_span(list(parts.values()))

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Losses are summed over branches by name; "disentangle" if its weight is not 0."""
        total, parts, vectors, codes = torch.zeros_like(x), [], [], []
        losses: dict[str, Tensor] = {}
        for part, (first, end) in self.each():
            parts.append(x[..., first:end])
            found = part.quantize(parts[-1], mask)
            total = total + self._place(found.vectors, first, end)
            vectors.append(found.vectors)
            codes.append(found.codes)
            add_losses(losses, found.losses)
        if self.config.disentangle:
            losses["disentangle"] = self.config.disentangle * disentangle(parts, vectors)
        return QuantizerOutput(total, torch.cat(codes, dim=-1), losses)

    def each(self) -> Iterable[tuple[Quantizer, tuple[int, int]]]:
        """Each branch with its channel range."""
        return zip(self.branches.values(), self.ranges, strict=True)  # pyright: ignore[reportReturnType]

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        return torch.cat([part.search(x[..., first:end], mask) for part, (first, end) in self.each()], dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, Q] -> [B, M, D]."""
        total, used = torch.zeros(1, device=codes.device), 0
        for part, (first, end) in self.each():
            own = codes[..., used : used + len(part.cardinalities)]
            used += len(part.cardinalities)
            total = total + self._place(part.lookup(own), first, end)
        return total

    def vectors(self) -> Tensor:
        """[Q, V, D], zero outside the branch's own channels."""
        return join_tables([self._place(part.vectors(), first, end) for part, (first, end) in self.each()])

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See Quantizer.rate."""
        return rates_of([part for part, _ in self.each()], codes)

    def fit_parts(self, x: Tensor) -> bool:
        """Fit every branch on its own channels."""
        return any([part.fit_parts(x[..., first:end]) for part, (first, end) in self.each()])

    def _place(self, vectors: Tensor, first: int, end: int) -> Tensor:
        return nn.functional.pad(vectors, (first, self.dim - end))
