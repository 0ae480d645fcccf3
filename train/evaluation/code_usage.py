"""Code usage of a tokenizer: fraction and evenness over a given window, and bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...lm.conditioning.registry import ConditionBatch
from ...lm.models.base import LanguageModel
from ...tokenize.compression.chunk_coder import Layout, symbol_costs
from ...tokenize.compression.context import symbol_table
from ...tokenize.compression.integer_network import CoderNet
from ...tokenize.compression.probability_models import NetworkModel
from ...tokenize.spec import AudioGeometry, TokenSpec

WINDOW = 4096
"""Default window of usage counts, in frames."""


@dataclass(frozen=True)
class CodebookUse:
    """Usage of the codes of one codebook."""

    size: int
    window: int
    """Frames per window for `used`, `usage`, `possible` and `perplexity`, which are means over all whole windows."""
    used: float
    """Codes that occur in a window."""
    usage: float
    """used / size."""
    possible: float
    """Expected usage of a window if all codes were equally likely: a practical maximum."""
    perplexity: float
    """Number of equally likely codes with the same entropy, in a window."""
    nominal_bits: float
    """log2(size), per frame."""
    unigram_bits: float
    """Entropy of the codes of all frames, as if drawn independently, per frame."""
    conditional_bits: float | None
    """Bits under a model conditioned on the previous frames, per frame; None: no model was given."""


@dataclass(frozen=True)
class Bits:
    """Bits of all codebooks together."""

    frames: int
    """All frames encoded here."""
    nominal_per_frame: float
    unigram_per_frame: float
    conditional_per_frame: float | None
    per: str
    """Unit of the following fields: "second" or "picture"."""
    frames_per: float
    nominal_per: float
    unigram_per: float
    conditional_per: float | None
    codes_per: float
    """Codes of all codebooks."""
    written_codes_per: float
    """The same, counting codes shared by several positions once and unneeded ones not at all: fewer for a quantizer
    with `stride`, `regions` or `halting`."""
    written_per: float
    """Nominal bits of those codes, including the side information on which positions share or need one."""


def codebook_use(codes: Tensor, size: int, window: int = WINDOW, conditional: float | None = None) -> CodebookUse:
    """Usage of one codebook from codes [F] long of consecutive frames; the window is at most F frames."""
    window = min(window, len(codes))
    parts = codes[: len(codes) // window * window].view(-1, window)
    counts = [_counts(part) for part in parts]
    used = sum(len(found) for found in counts) / len(counts)
    return CodebookUse(
        size=size,
        window=window,
        used=used,
        usage=used / size,
        possible=-math.expm1(window * math.log1p(-1 / size)) if size > 1 else 1.0,
        perplexity=sum(math.exp(_entropy(found)) for found in counts) / len(counts),
        nominal_bits=math.log2(size),
        unigram_bits=max(0.0, _entropy(_counts(codes)) / math.log(2)),
        conditional_bits=conditional,
    )


def _counts(codes: Tensor) -> Tensor:
    return torch.unique(codes, return_counts=True)[1].double()


def _entropy(counts: Tensor) -> float:
    shares = counts / counts.sum()
    return -(shares * shares.log()).sum().item()


def total_bits(
    spec: TokenSpec, codebooks: Sequence[CodebookUse], frames: int, written: tuple[float, float] | None = None
) -> Bits:
    """Sums over codebooks, per frame and per second or image.

    written: codes and bits of all frames from `Tokenizer.rate`; None: no code is shared.
    """
    nominal = sum(book.nominal_bits for book in codebooks)
    unigram = sum(book.unigram_bits for book in codebooks)
    known = [book.conditional_bits for book in codebooks if book.conditional_bits is not None]
    conditional = sum(known) if len(known) == len(codebooks) else None
    geometry = spec.geometry
    audio = isinstance(geometry, AudioGeometry)
    frames_per = geometry.frame_rate if audio else geometry.num_frames
    return Bits(
        frames,
        nominal,
        unigram,
        conditional,
        "second" if audio else "picture",
        frames_per,
        nominal * frames_per,
        unigram * frames_per,
        None if conditional is None else conditional * frames_per,
        len(codebooks) * frames_per,
        *(total / frames * frames_per for total in written or (len(codebooks) * frames, nominal * frames)),
    )


def conditional_bits(codes: Sequence[Tensor], net: CoderNet) -> list[float]:
    """Bits per frame and codebook [K] for items [K, T], under a network that reads each item from its beginning."""
    table = symbol_table(net.spec.cardinalities)
    symbols = table.split(torch.cat(list(codes), dim=1).cpu().numpy())
    layout = Layout.of([item.shape[1] for item in codes], len(symbols))
    costs = symbol_costs(symbols, layout, net.spec, NetworkModel(net)).sum(axis=0) / len(symbols)
    books = np.array(table.of_codebook)
    return [float(costs[books == book].sum()) for book in range(len(net.spec.cardinalities))]


@torch.no_grad()
def language_model_bits(codes: Sequence[Tensor], lm: LanguageModel) -> list[float]:
    """The same under a language model in eval mode, without label or text condition; counts its end ids too."""
    nats = torch.zeros(lm.num_codebooks, dtype=torch.float64)
    for item in codes:
        nothing = lm.conditions.with_nulls(ConditionBatch(), 1).to(lm.device)
        report = lm.loss(item[None].to(lm.device), torch.tensor([item.shape[1]], device=lm.device), nothing)
        nats += (report.per_codebook.double() * report.count).cpu()
    return (nats / math.log(2) / sum(item.shape[1] for item in codes)).tolist()


def usage_growth(codes: Tensor, points: int = 24) -> list[tuple[int, int]]:
    """(frames seen, distinct codes seen) along codes [F] long, at up to `points` geometrically spaced frame counts."""
    first = torch.zeros(len(codes), dtype=torch.bool)
    first[np.unique(codes.cpu().numpy(), return_index=True)[1]] = True
    seen = first.cumsum(0)
    at = np.unique(np.geomspace(1, len(codes), points).round().astype(int))
    return [(int(frames), int(seen[frames - 1])) for frames in at]
