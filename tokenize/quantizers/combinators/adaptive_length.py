"""Adaptive length: a head predicts the reconstruction error above which each token can be dropped.

    positions, in order of importance  0     1     2     3     4     5
    largest error it is needed for    .40   .21   .12   .07   .05   .04     predicted by the head from the latents
    wanted error 0.1                 code  code  code    V     V     V      halt at the first token not needed

Samples keep all their positions, so consumers of codes need no changes: tokens after the halt get the additional code V
of their codebook, "absent", which has a learned vector.

In training, the halt is sampled for each sample, and the head learns from the resulting reconstruction error (loss
`halting`, train/losses/adaptive_length.py). Sources: KARL, arXiv:2507.07995, whose encoder is conditioned on the wanted
error and therefore runs twice per image; here only the head is conditioned on it, so the tokens before the halt do not
depend on the error, and one pass is enough.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ....configs.schema import Config, ConfigError
from ..base import MakeQuantizer, QuantizerOutput, float32_only, join_tables
from ..projection import project
from .wrapper import Wrapper

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py

SMALLEST_ERROR = 1e-4
"""Lower bound of an image's error; smaller values are clamped to it."""
FIRST_LIMIT = 0.1
"""Approximate error at which tokens halt in an untrained model."""


class HaltingConfig(Config):
    """Must be the root of a quantizer tree. Positions are the tokens of one image in order of importance."""

    kind: Literal["halting"] = "halting"
    wanted_error: PositiveFloat
    """Target mean absolute error of pixels in [-1, 1] when encoding an image; not used in training."""
    shortest: PositiveInt = 1
    """Number of tokens that are always kept."""
    halt_above: float = Field(default=0.5, gt=0, lt=1)
    """Predicted probability above which a token counts as not needed."""
    width: PositiveInt = 64
    """Hidden units of the head."""
    quantizer: QuantizerConfig
    """Quantizer of the tokens before the halt."""


class HaltingQuantizer(Wrapper):
    """Encodes each sample with as many tokens as the wanted error requires.

    `wanted_error` may be set between calls: it changes the codes, but not what codes decode to.
    """

    def __init__(self, config: HaltingConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        if "." in where:
            raise ConfigError(f"{where}: halting applies to all tokens of an image; make it the outermost quantizer")
        inner = make(config.quantizer, dim, depth, f"{where}.quantizer")
        if inner.span == 0 or not inner.cardinalities:
            raise ConfigError(
                f"{where}.quantizer: '{config.quantizer.kind}' has no code per token that could be dropped"
            )
        super().__init__(inner)
        self.config = config
        self.wanted_error = config.wanted_error
        self.span = 0  # whether a token is absent depends on the previous tokens
        self.absent = nn.Parameter(0.02 * torch.randn(len(inner.cardinalities), dim))
        self.hidden = nn.Linear(dim, config.width)
        self.mix = nn.Linear(2 * config.width, config.width)
        """Input: a token's hidden units and their mean over the sample."""
        self.limit = nn.Linear(config.width, 2)
        """Log of the largest error for which a token is needed, and the confidence."""
        with torch.no_grad():
            self.limit.bias.copy_(torch.tensor([FIRST_LIMIT, 1.0]).log())

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """See Quantizer.cardinalities; the last code of each codebook is "absent"."""
        return tuple(size + 1 for size in self.inner.cardinalities)

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize."""
        if self.training:
            lengths = self.draw_lengths(*x.shape[:2]).to(x.device)
            kept = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        else:
            kept = self.needed(x, self.wanted_error)
        valid = torch.ones_like(kept) if mask is None else mask
        part = self.inner.quantize(torch.where((kept & valid)[..., None], x, 0.0), kept & valid)
        codes = self._fill(part.codes, valid & ~kept)
        return QuantizerOutput(self._sum(part.vectors, codes), codes, part.losses)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, Q]."""
        kept = self.needed(x, self.wanted_error)
        valid = kept if mask is None else kept & mask
        return self._fill(self.inner.search(torch.where(valid[..., None], x, 0.0), valid), ~kept)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, Q] -> [B, M, D]."""
        return self._sum(self.inner.lookup(torch.where(self._is_absent(codes), -1, codes)), codes)

    def vectors(self) -> Tensor:
        """[Q, V + 1, D]."""
        inner = self.inner.vectors()
        tables = [
            torch.cat([table[:size], own[None]])[None]
            for table, size, own in zip(inner, self.inner.cardinalities, self.absent.float(), strict=True)
        ]
        return join_tables(tables)

    def estimate(self, x: Tensor, parts: QuantizerOutput) -> Tensor:
        """See Quantizer.estimate; absent tokens pass no gradient to their latents, which their values do not depend
        on."""
        absent = self._is_absent(parts.codes).all(dim=-1, keepdim=True)
        return torch.where(absent, parts.vectors, super().estimate(x, parts))

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See Quantizer.rate; absent tokens cost nothing, but each sample stores the position of its halt."""
        number, bits = self.inner.rate(torch.where(self._is_absent(codes), -1, codes))
        return number, bits + math.log2(max(1, codes.shape[1] - self.config.shortest + 1))

    def present(self, codes: Tensor) -> Tensor:
        """Which tokens of codes [*, Q] are not absent, [*] bool."""
        return ((codes >= 0) & ~self._is_absent(codes)).any(dim=-1)

    def needed(self, x: Tensor, error: float) -> Tensor:
        """Which tokens of latents [B, M, D] come before the halt, [B, M] bool."""
        odds = torch.tensor(self.config.halt_above, dtype=torch.float64).logit().item()
        halts = self.halting(x, torch.full((len(x),), error, device=x.device)) > odds
        halts[:, : self.config.shortest] = False
        return halts.cumsum(dim=1) == 0

    def halting(self, x: Tensor, errors: Tensor) -> Tensor:
        """Log odds that a token is not needed: latents [B, M, D] and errors of their images [B] -> [B, M] float64.

        They increase with the error by construction, and pass no gradient to the latents.
        """
        # In float64: rounding that depends on the number of rows then moves no halt.
        with float32_only():
            hidden = F.silu(project(self.hidden, x.detach()))
            whole = hidden.mean(dim=1, keepdim=True).expand_as(hidden)
            limit, sureness = project(self.limit, F.silu(project(self.mix, torch.cat([hidden, whole], -1)))).unbind(-1)
            return F.softplus(sureness) * (errors.to(limit.dtype).clamp_min(SMALLEST_ERROR).log()[:, None] - limit)

    def draw_lengths(self, num_samples: int, places: int) -> Tensor:
        """Sample how many of its `places` positions each sample keeps, [B] long, from torch's global generator."""
        return torch.randint(min(self.config.shortest, places), places + 1, (num_samples,))

    def _is_absent(self, codes: Tensor) -> Tensor:
        return codes == torch.tensor(self.inner.cardinalities, device=codes.device)

    def _fill(self, codes: Tensor, absent: Tensor) -> Tensor:
        """Codes [B, M, Q] with the tokens in `absent` [B, M] set to the absent code."""
        return torch.where(absent[..., None], torch.tensor(self.inner.cardinalities, device=codes.device), codes)

    def _sum(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Vectors [B, M, D] of the present codes plus the learned vectors of the absent codes."""
        for own, absent in zip(self.absent.float(), self._is_absent(codes).unbind(-1), strict=True):
            vectors = vectors + torch.where(absent[..., None], own, 0.0)
        return vectors
