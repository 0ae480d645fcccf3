"""Codes that are integers of bits, as lookup-free quantizers make them: read as bits and predicted as bits.

    code 5 of 16 (4 bits)     read as         (+1, -1, +1, -1)      the bit of value 1 first
                              predicted as    0 1 0 1               4 symbols of 2 values, the largest bit first
                              in 2 groups     1 1                   2 symbols of 4 values: 5 = 4 * 1 + 1

So 2^18 codes take a table of 18 vectors and 36 logits.
Sources: MAGVIT-2 (arXiv:2310.05737) and BSQ (arXiv:2406.07548) for the codes, MaskBit (arXiv:2409.16211) for reading
bits and for the groups.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError, LayerCount
from ..layers.transformer import SpecialVectors
from ..ops.linear import Linear
from ..patterns.pattern import Arrangement
from .parallel import ParallelHead


class BitsInputConfig(Config):
    """A learned vector for every bit of every codebook, added where the bit is 1 and taken off where it is 0; special
    ids have learned vectors."""

    kind: Literal["bits"] = "bits"


class BitsHeadConfig(Config):
    """Bits of all codebooks, or groups of them, predicted independently of each other."""

    kind: Literal["bits"] = "bits"
    groups: LayerCount | None = None
    """Groups of a code's bits, of 2^(bits / groups) logits each; null: each bit by itself."""


class BitsInput(nn.Module):
    """ids [B, K, S] -> [B, S, D].

    With hidden [B, J, S], True where a symbol of J / K groups of bits is hidden, its bits are read as neither 1 nor 0.
    """

    cardinalities: Tensor
    books: Tensor
    shifts: Tensor
    places: Tensor
    """[n]: of how many bits each bit's codebook is."""

    def __init__(
        self, config: BitsInputConfig, arrangement: Arrangement, width: int, code_vectors: Tensor | None = None
    ):
        super().__init__()
        bits = count_bits(arrangement.cardinalities, "lm.input kind 'bits'")
        places = [(k, shift) for k, count in enumerate(bits) for shift in range(count)]
        books, shifts = torch.tensor(places, device="cpu").unbind(1)
        self.register_buffer("books", books, persistent=False)
        self.register_buffer("shifts", shifts[:, None], persistent=False)
        self.register_buffer("places", torch.tensor(bits, device="cpu")[books], persistent=False)
        self.register_buffer("cardinalities", torch.tensor(arrangement.cardinalities, device="cpu")[:, None], False)
        self.linear = Linear(len(places), width, bias=False)
        self.specials = SpecialVectors(arrangement.cardinalities, arrangement.num_specials, width)

    def forward(self, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        known = (ids < self.cardinalities)[:, self.books]
        if hidden is not None:
            groups = hidden.shape[1] // ids.shape[1]
            group = groups - 1 - self.shifts[:, 0] // (self.places // groups)  # the first group has the largest bits
            known = known & ~hidden[:, self.books * groups + group]
        signs = torch.where(known, 2 * (ids[:, self.books] >> self.shifts & 1) - 1, 0)
        learned = self.specials(ids)
        return self.linear(signs.transpose(1, 2).to(learned.dtype)) + learned


class BitsHead(ParallelHead):
    """A parallel head whose symbols are bits or groups of bits."""

    def __init__(
        self, config: BitsHeadConfig, width: int, arrangement: Arrangement, code_vectors: Tensor | None = None
    ):
        bits = count_bits(arrangement.cardinalities, "lm.head kind 'bits'")
        groups = config.groups or bits[0]
        for count in bits:
            if count % groups:
                raise ConfigError(
                    f"lm.head.groups: codes of {count} bits do not fall into {groups} groups; give a divisor of "
                    f"{', '.join(str(one) for one in sorted(set(bits)))}"
                )
        digits = [(1 << count // groups,) * groups for count in bits]
        super().__init__(config, width, arrangement, digits=digits)


def count_bits(cardinalities: tuple[int, ...], who: str) -> list[int]:
    """Bits of a code of each codebook; ConfigError where a cardinality is no power of two."""
    bits = [size.bit_length() - 1 for size in cardinalities]
    for k, size in enumerate(cardinalities):
        if size < 2 or size != 1 << bits[k]:
            raise ConfigError(
                f"{who} needs codebooks of 2, 4, 8, ... codes, which are integers of bits; codebook {k} has {size}"
            )
    return bits
