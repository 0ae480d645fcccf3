"""Fewer tokens for simple pictures: a head says of each token at which error of the picture it is not needed.

    places, in order of importance     0     1     2     3     4     5
    largest error it is needed for    .40   .21   .12   .07   .05   .04     by the head, from the latents
    wanted error 0.1                 code  code  code    V     V     V      the first that is not needed halts

A sample keeps all its places, so whoever reads codes need know nothing: a token after the halt has a code of its own,
"absent", one behind those of its codebook, and a learned vector.

While training the halt is drawn, for each sample, and the head learns from the error that the picture then has (the
term `halting`, train/losses/adaptive_length.py). Sources: KARL, arXiv:2507.07995, whose encoder is told the wanted
error, and therefore passes each picture twice; here the head alone is told, so the tokens before the halt are those of
any error, and one pass does.
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
from ..nearest import exact_dtype
from .wrapper import Wrapper

if TYPE_CHECKING:
    from ..base import PartConfig as QuantizerConfig  # when it runs: the union of registry.py

SMALLEST_ERROR = 1e-4
"""Of a picture; a smaller one counts as this."""
FIRST_LIMIT = 0.1
"""Error at which tokens halt before anything is learned, about."""


class HaltingConfig(Config):
    """The outermost part of a tree. Places are tokens in order of importance, all of them in one part of a picture."""

    kind: Literal["halting"] = "halting"
    wanted_error: PositiveFloat
    """Mean absolute difference of pixels in [-1, 1] that is aimed at when a picture is encoded; training does not look
    at it."""
    shortest: PositiveInt = 1
    """Tokens that never halt."""
    halt_above: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a token counts as not needed."""
    width: PositiveInt = 64
    """Hidden units of the head."""
    quantizer: QuantizerConfig
    """Of every token before the halt."""


class HaltingQuantizer(Wrapper):
    """See the head of this file.

    `wanted_error` may be set between calls: codes then differ, what they decode to does not.
    """

    def __init__(self, config: HaltingConfig, dim: int, depth: int, where: str, make: MakeQuantizer):
        if "." in where:
            raise ConfigError(f"{where}: halting is about all tokens of a picture; make it the outermost part")
        inner = make(config.quantizer, dim, depth, f"{where}.quantizer")
        if inner.span == 0 or not inner.cardinalities:
            raise ConfigError(f"{where}.quantizer: '{config.quantizer.kind}' has no code of a token to leave out")
        super().__init__(inner)
        self.config = config
        self.wanted_error = config.wanted_error
        self.span = 0  # whether a token is absent depends on those before it
        self.absent = nn.Parameter(0.02 * torch.randn(len(inner.cardinalities), dim))
        self.hidden = nn.Linear(dim, config.width)
        self.mix = nn.Linear(2 * config.width, config.width)
        """Of a token's own hidden units and the mean of all tokens' of the sample."""
        self.limit = nn.Linear(config.width, 2)
        """Log of the largest error that a token is needed for, and how sure that is."""
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
        """As every quantizer, but no gradient reaches the latents of absent tokens: their values do not depend on
        them."""
        absent = self._is_absent(parts.codes).all(dim=-1, keepdim=True)
        return torch.where(absent, parts.vectors, super().estimate(x, parts))

    def rate(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See Quantizer.rate; absent tokens take nothing, and where a sample halts is one number."""
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
        """Log odds that a token is not needed: latents [B, M, D] and errors of their pictures [B] -> [B, M] float64.

        They grow with the error, whatever the head has learned, and lead no gradient to the latents.
        """
        # In float64: how a product rounds by the number of rows then moves no halt.
        dtype = exact_dtype(x)
        with float32_only():
            hidden = F.silu(_linear(self.hidden, x.detach().to(dtype)))
            whole = hidden.mean(dim=1, keepdim=True).expand_as(hidden)
            limit, sureness = _linear(self.limit, F.silu(_linear(self.mix, torch.cat([hidden, whole], -1)))).unbind(-1)
            return F.softplus(sureness) * (errors.to(dtype).clamp_min(SMALLEST_ERROR).log()[:, None] - limit)

    def draw_lengths(self, num_samples: int, places: int) -> Tensor:
        """How many of its `places` each sample keeps, [B] long, from torch's global generator."""
        return torch.randint(min(self.config.shortest, places), places + 1, (num_samples,))

    def _is_absent(self, codes: Tensor) -> Tensor:
        return codes == torch.tensor(self.inner.cardinalities, device=codes.device)

    def _fill(self, codes: Tensor, absent: Tensor) -> Tensor:
        """Codes [B, M, Q] with those of absent tokens [B, M] in place."""
        return torch.where(absent[..., None], torch.tensor(self.inner.cardinalities, device=codes.device), codes)

    def _sum(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Vectors [B, M, D] of the codes that are there, and those of absent ones."""
        for own, absent in zip(self.absent.float(), self._is_absent(codes).unbind(-1), strict=True):
            vectors = vectors + torch.where(absent[..., None], own, 0.0)
        return vectors


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
