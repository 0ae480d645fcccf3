"""Symbols: what a head draws. Mostly they are the ids themselves; a large code may be several symbols of few values.

An id is written in digits, the first one largest; special ids have digits of their own. A codebook of 6 = 2 x 3 codes,
where e, s and p are the ids end, start and pad:

    id          0  1  2  3  4  5  e  s  p
    symbol 0    0  0  0  1  1  1  2  3  4       an end can be drawn: it is one more value of the first symbol
    symbol 1    0  1  2  0  1  2  3  3  3       3: there is none, as the first symbol says it all

The product over the symbols of an id is a distribution over ids, so the loss of an id is the sum over its symbols.
Source: the sub-tokens of Open-MAGVIT2 (arXiv:2409.04410), a code of 18 bits as 6 and 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...configs.schema import ConfigError
from ..ops.loss import IGNORED
from .pattern import CodebookPattern


def equal_digits(sizes: Sequence[int], arrangement: CodebookPattern, who: str) -> list[tuple[int, ...]]:
    """The `digits` that split the codes of every codebook alike; ConfigError unless the product is its cardinality."""
    product = math.prod(sizes)
    for k, size in enumerate(arrangement.cardinalities):
        if product != size:
            raise ConfigError(
                f"{who} {list(sizes)} make {product} codes, but codebook {k} has {size}; give sizes whose product it is"
            )
    return [tuple(sizes)] * arrangement.num_codebooks


class SubTokens:
    """J symbols of the K codebooks of a step, the same number for each codebook, in the order of the codebooks.

    Args:
        digits: for each codebook the numbers of values of its symbols, whose product is its cardinality; None: one
            symbol for each codebook, its id.
    """

    def __init__(self, arrangement: CodebookPattern, digits: Sequence[Sequence[int]] | None = None):
        V, specials = arrangement.cardinalities, arrangement.num_specials
        digits = digits or [(size,) for size in V]
        self.parts = len(digits[0])
        """Symbols of a codebook."""
        self.codebooks = tuple(k for k in range(len(V)) for _ in range(self.parts))
        """[J]: the codebook of each symbol."""
        values = [size for sizes in digits for size in sizes]
        first = [j % self.parts == 0 for j in range(len(values))]
        end = arrangement.output_sizes[0] - V[0]
        self.output_sizes = (values[0] + end, *values[1:])
        """[J]: values that can be drawn."""
        none = 1 if self.parts > 1 else specials
        self.input_sizes = tuple(size + (specials if first[j] else none) for j, size in enumerate(values))
        """[J]: values there are, those of special ids included."""
        self.end = values[0] + arrangement.end_ids[0] - V[0]
        """The value of symbol 0 that is the end of codebook 0."""
        places = [1] * len(values)
        for j in reversed(range(len(values) - 1)):
            places[j] = 1 if first[j + 1] else places[j + 1] * values[j + 1]
        book_sizes = [V[k] for k in self.codebooks]
        constants = [values, self.output_sizes, places, book_sizes, first]
        self._constants = torch.tensor(constants, dtype=torch.long, device="cpu")
        self._on_device: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        """J."""
        return len(self.codebooks)

    def split(self, ids: Tensor) -> Tensor:
        """Symbols [B, J, *] of ids [B, K, *], special ids included."""
        if self.parts == 1:
            return ids
        sizes, _, places, book_sizes, first = self._like(ids)
        ids = ids.repeat_interleave(self.parts, dim=1)
        special = torch.where(first > 0, sizes + ids - book_sizes, sizes)
        return torch.where(ids >= book_sizes, special, ids // places % sizes)

    def join(self, symbols: Tensor) -> Tensor:
        """Ids [B, K, *] of symbols [B, J, *]: the inverse of `split`."""
        if self.parts == 1:
            return symbols
        sizes, _, places, book_sizes, _ = self._like(symbols)
        codes = self.sum(symbols * places)
        beyond = (symbols - sizes)[:, :: self.parts]
        return torch.where(beyond >= 0, book_sizes[:: self.parts] + beyond, codes)

    def targets(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What is to be predicted, [B, J, *]: symbols of ids [B, K, *] where mask (alike) is True, IGNORED elsewhere
        and where an id has no such symbol."""
        if self.parts == 1:
            return torch.where(mask, ids, IGNORED)
        symbols = self.split(ids)
        drawn = mask.repeat_interleave(self.parts, dim=1) & (symbols < self._like(ids)[1])
        return torch.where(drawn, symbols, IGNORED)

    def sum(self, terms: Tensor) -> Tensor:
        """Sums [B, K, *] over the symbols [B, J, *] of each codebook, such as of their loss terms."""
        return terms if self.parts == 1 else terms.unflatten(1, (-1, self.parts)).sum(dim=2)

    def _like(self, ids: Tensor) -> Tensor:
        """[5, J, 1...]: of each symbol the values codes have, the values that are drawn, its place, its codebook's
        cardinality, and whether it is a first one."""
        if ids.device not in self._on_device:
            self._on_device[ids.device] = self._constants.to(ids.device)
        return self._on_device[ids.device].view(5, -1, *[1] * (ids.dim() - 2))


def count_bits(cardinalities: tuple[int, ...], who: str) -> list[int]:
    """Bits of a code of each codebook; ConfigError where a cardinality is no power of two."""
    bits = [size.bit_length() - 1 for size in cardinalities]
    for k, size in enumerate(cardinalities):
        if size < 2 or size != 1 << bits[k]:
            raise ConfigError(
                f"{who} needs codebooks of 2, 4, 8, ... codes, which are integers of bits; codebook {k} has {size}"
            )
    return bits
