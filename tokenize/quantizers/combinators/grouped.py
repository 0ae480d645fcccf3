"""Product quantization: the channels are split into groups of equal width, each with its own quantizer.

    x [*, D]   ->   x 0 | x 1 | .. | x G-1, each [*, D / G]   ->   q 0 | q 1 | .. | q G-1

Losses are averaged over groups, which keeps a mean over channels a mean.
Source: product quantization, doi:10.1109/TPAMI.2010.57; with residuals inside: HiFi-Codec, arXiv:2305.02765; one
codebook for all groups: MoVQ, arXiv:2209.09002; nested dropping of groups: MGVQ, arXiv:2507.07997.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from ....configs.schema import ConfigError, LayerCount
from ..base import MakeQuantizer, Quantizer, QuantizerOutput, add_losses, join_tables, rates_of
from ..regularization import disentangle
from .residual import LevelDropout, check_choices, common_span, draw_levels, level_mask

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class GroupConfig(LevelDropout):
    """Channel groups; level dropout keeps the first few groups."""

    added = LevelDropout.added | {"order"}

    kind: Literal["group"] = "group"
    groups: LayerCount
    """Number of groups; must divide the number of channels."""
    quantizer: QuantizerConfig
    """Quantizer of each group."""
    shared: bool = False
    """Use one quantizer, with one codebook, for all groups."""
    order: Literal["groups", "levels"] = "groups"
    """Order of the codes. groups: all of group 0, then all of group 1, ... levels: the first of each group, then the
    second of each, ... (groups of channels with residual levels: coarse first)."""
    disentangle: NonNegativeFloat = 0.0
    """Weight of the squared cosine between the code vectors of two groups, averaged over pairs."""


class GroupQuantizer(Quantizer):
    """Product quantizer. Q = groups times the codes of one group."""

    groups: Sequence[Quantizer]

    def __init__(self, config: GroupConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        if dim % config.groups:
            raise ConfigError(f"{where}.groups: {config.groups} groups do not divide {dim} channels; use a divisor")
        width = dim // config.groups
        own = 1 if config.shared else config.groups
        groups = [make(config.quantizer, width, depth, f"{where}.quantizer") for _ in range(own)]
        super().__init__(dim, groups * (config.groups // own))
        check_choices(config, config.groups, where)
        self.config = config
        self.groups = nn.ModuleList(groups)  # pyright: ignore[reportAttributeAccessIssue]
        self.span = common_span(groups)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """See Quantizer."""
        sizes, groups = super().cardinalities, self.config.groups
        if self.config.order == "groups":
            return sizes
        levels = len(sizes) // groups
        return tuple(sizes[group * levels + level] for level in range(levels) for group in range(groups))

    def in_order(self, codes: Tensor) -> Tensor:
        """Codes [*, Q] of the groups one after another, in the config's order."""
        if self.config.order == "groups":
            return codes
        return codes.unflatten(-1, (self.config.groups, -1)).transpose(-1, -2).flatten(-2)

    def by_group(self, codes: Tensor) -> Tensor:
        """Undo `in_order`."""
        if self.config.order == "groups":
            return codes
        return codes.unflatten(-1, (-1, self.config.groups)).transpose(-1, -2).flatten(-2)

    def each(self) -> list[Quantizer]:
        """The quantizer of every group, repeated if shared."""
        return list(self.groups) * (self.config.groups if self.config.shared else 1)

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Losses are averaged over groups; "disentangle" if its weight is not 0."""
        used = self.draw_levels(x.shape[0]).to(x.device) if self.training and self.config.level_dropout else None
        vectors, codes = [], []
        losses: dict[str, Tensor] = {}
        parts = x.chunk(self.config.groups, dim=-1)
        for number, (group, part) in enumerate(zip(self.each(), parts, strict=True)):
            kept = mask
            if used is not None:
                kept = level_mask(used, number, x, mask)
                part = torch.where(kept[..., None], part, 0.0)
            found = group.quantize(part, kept)
            vectors.append(found.vectors)
            codes.append(found.codes)
            add_losses(losses, found.losses, 1 / self.config.groups)
        if self.config.disentangle:
            losses["disentangle"] = self.config.disentangle * disentangle(parts, vectors)
        return QuantizerOutput(torch.cat(vectors, dim=-1), self.in_order(torch.cat(codes, dim=-1)), losses)

    def draw_levels(self, num_samples: int) -> Tensor:
        """Sample how many groups each sample uses, [B] long, from torch's global generator."""
        return draw_levels(self.config, self.config.groups, num_samples)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        parts = zip(self.each(), x.chunk(self.config.groups, dim=-1), strict=True)
        return self.in_order(torch.cat([group.search(part, mask) for group, part in parts], dim=-1))

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, Q] -> [B, M, D]."""
        parts = zip(self.each(), self.by_group(codes).chunk(self.config.groups, dim=-1), strict=True)
        return torch.cat([group.lookup(part) for group, part in parts], dim=-1)

    def vectors(self) -> Tensor:
        """[Q, V, D], zero outside the group's own channels."""
        width, tables = self.dim // self.config.groups, []
        for number, group in enumerate(self.each()):
            before = number * width
            tables.append(nn.functional.pad(group.vectors(), (before, self.dim - before - width)))
        return self.in_order(join_tables(tables).movedim(0, -1)).movedim(-1, 0)

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See Quantizer.rate."""
        return rates_of(self.each(), self.by_group(codes))

    def fit_parts(self, x: Tensor) -> bool:
        """Fit every group on its own channels."""
        parts = zip(self.each(), x.chunk(self.config.groups, dim=-1), strict=True)
        return any([group.fit_parts(part) for group, part in parts])
