"""Residual quantization: each stage quantizes the residual of the previous stages; the value is the sum of all stages.

    rest 0 = x,   q i = stage i (rest i),   rest i+1 = rest i - q i (no gradient through q i),   value = q 0 + q 1 + ...

A single straight-through gradient goes around the sum (Quantizer.forward): one per stage would multiply the encoder's
gradient by the number of stages. The commitment losses of all stages reach the encoder, because the rest keeps the
gradient of x; the rest after stage i is x minus the cumulative sum, so this is the cumulative commitment loss of RQ-VAE
(arXiv:2203.01941).

`residual` repeats one kind of quantizer (SoundStream, arXiv:2107.03312; one codebook for all levels: RQ-VAE,
arXiv:2203.01941; level dropout per sample: arXiv:2306.06546, from a set of level counts: EnCodec, arXiv:2210.13438).
The stages of a `chain` may differ: Language-Codec's MCRVQ (arXiv:2402.12208) is a `group` of 3, then a `residual`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from ....configs.schema import ConfigError, FingerprintedConfig, LayerCount
from ..base import MakeQuantizer, Quantizer, QuantizerOutput, add_losses, join_tables, rates_of

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py


class LevelDropout(FingerprintedConfig):
    """Base config of combinators that can drop their last levels in training (quantizer dropout)."""

    added = frozenset({"level_choices"})

    level_dropout: float = Field(default=0.0, ge=0, le=1)
    """Fraction of training samples that use a random number of levels, so that every prefix of codes decodes well."""
    level_choices: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Level counts that such a sample may draw, equally likely; null: 1, 2, .. all."""


class ChainConfig(LevelDropout):
    """Different quantizers in sequence, coarse first."""

    kind: Literal["chain"] = "chain"
    stages: tuple[QuantizerConfig, ...] = Field(min_length=1)
    """Each quantizes the residual of the previous stages."""


class ChainQuantizer(Quantizer):
    """Residual quantizer with different stages. Q is the sum over stages."""

    levels: Sequence[Quantizer]

    def __init__(self, config: ChainConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        stages = config.stages
        parts = [make(part, dim, depth + i, f"{where}.stages.{i}") for i, part in enumerate(stages)]
        self._take(config, parts, len(parts), where)

    def _take(self, config: LevelDropout, parts: list[Quantizer], repeats: int, where: str) -> None:
        """Initialize with the levels `parts`, or a single part used `repeats` times."""
        used = parts if len(parts) == repeats else parts * repeats
        Quantizer.__init__(self, used[0].dim, used)
        check_choices(config, repeats, where)
        self.config: LevelDropout = config
        self.repeats = repeats
        self.levels = nn.ModuleList(parts)  # pyright: ignore[reportAttributeAccessIssue]
        self.span = common_span(parts)

    def each(self) -> list[Quantizer]:
        """The quantizer of every level in order, repeated if shared."""
        levels = list(self.levels)
        return levels if len(levels) == self.repeats else levels * self.repeats

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize. Losses are summed over levels by name; a dropped level has code -1 and loss 0."""
        used = self.draw_levels(x.shape[0]).to(x.device) if self.training and self.config.level_dropout else None
        rest, total, codes = x, torch.zeros_like(x), []
        losses: dict[str, Tensor] = {}
        for number, level in enumerate(self.each()):
            kept = mask
            if used is not None:
                kept = level_mask(used, number, x, mask)
                rest = torch.where(kept[..., None], rest, 0.0)
            part = level.quantize(rest, kept)
            rest = rest - part.vectors.detach()
            total = total + part.vectors
            codes.append(part.codes)
            add_losses(losses, part.losses)
        return QuantizerOutput(total, torch.cat(codes, dim=-1), losses)

    def draw_levels(self, num_samples: int) -> Tensor:
        """Sample how many levels each sample uses, [B] long, from torch's global generator."""
        return draw_levels(self.config, self.repeats, num_samples)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        rest, codes = x, []
        for level in self.each():
            codes.append(level.search(rest, mask))
            rest = rest - level.lookup(codes[-1])
            rest = rest if mask is None else torch.where(mask[..., None], rest, 0.0)
        return torch.cat(codes, dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, Q] -> [B, M, D], summed coarse first as in `quantize`."""
        total = torch.zeros(1, device=codes.device)
        levels = self.each()
        for level, own in zip(levels, codes.split([len(level.cardinalities) for level in levels], -1), strict=True):
            total = total + level.lookup(own)
        return total

    def vectors(self) -> Tensor:
        """[Q, V, D]."""
        return join_tables([level.vectors() for level in self.each()])

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See Quantizer.rate."""
        return rates_of(self.each(), codes)

    def fit_parts(self, x: Tensor) -> bool:
        """Fit each level on the residual of the previous levels."""
        found, rest = False, x
        for level in self.each():
            found = level.fit_parts(rest) or found
            rest = rest - level.lookup(level.search(rest))
        return found


def draw_levels(config: LevelDropout, levels: int, num_samples: int) -> Tensor:
    """Sample how many of `levels` each sample uses, [B] long: all, or a random number with level dropout."""
    dropped = torch.rand(num_samples) < config.level_dropout
    if config.level_choices is None:
        chosen = torch.randint(1, levels + 1, (num_samples,))
    else:
        chosen = torch.tensor(config.level_choices)[torch.randint(len(config.level_choices), (num_samples,))]
    return torch.where(dropped, chosen, levels)


def level_mask(used: Tensor, level: int, x: Tensor, mask: Tensor | None) -> Tensor:
    """Mask [B, M] of the positions of x [B, M, D] inside `mask` whose sample uses this level; used: [B] levels."""
    kept = (used > level)[:, None].expand(x.shape[:2])
    return kept if mask is None else kept & mask


def check_choices(config: LevelDropout, levels: int, where: str) -> None:
    """Raise ConfigError if a sample could draw more levels than there are, or if nothing is ever drawn."""
    if config.level_choices is not None and max(config.level_choices) > levels:
        raise ConfigError(f"{where}.level_choices: {max(config.level_choices)} is above the {levels} levels")
    if config.level_choices is not None and not config.level_dropout:
        raise ConfigError(f"{where}.level_choices: level_dropout is 0, so no level is ever dropped; set it (1: always)")


def common_span(parts: Sequence[Quantizer]) -> int:
    """The common `Quantizer.span` of quantizers used in parallel or in sequence."""
    return 0 if any(part.span == 0 for part in parts) else math.lcm(*(part.span for part in parts))


class ResidualConfig(LevelDropout):
    """Several levels of the same kind of quantizer, coarse first (RVQ)."""

    added = LevelDropout.added | {"shared"}

    kind: Literal["residual"] = "residual"
    levels: LayerCount
    """Number of levels."""
    quantizer: QuantizerConfig
    """Quantizer of each level."""
    shared: bool = False
    """Use one quantizer, with one codebook, for all levels; otherwise every level has its own."""


class ResidualQuantizer(ChainQuantizer):
    """Residual quantizer with identical stages. Q = levels times the codes of one level."""

    def __init__(self, config: ResidualConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        own = 1 if config.shared else config.levels
        parts = [make(config.quantizer, dim, depth + level, f"{where}.quantizer") for level in range(own)]
        self._take(config, parts, config.levels, where)
