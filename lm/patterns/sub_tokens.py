"""Sub-tokens: what a head predicts. Usually they are the ids; a large code can be split into several small sub-tokens.

An id is written in digits, most significant first; special ids have their own digits. For a codebook of 6 = 2 x 3
codes, where e, s and p are the ids end, start and pad:

    id             0  1  2  3  4  5  e  s  p
    sub-token 0    0  0  0  1  1  1  2  3  4    an end can be predicted: it is one more value of the first sub-token
    sub-token 1    0  1  2  0  1  2  3  3  3    3: unused, because the first sub-token determines the id

The product over the sub-tokens of an id is a distribution over ids, so the loss of an id is the sum over its
sub-tokens. Source: the sub-tokens of Open-MAGVIT2 (arXiv:2409.04410), a code of 18 bits as 6 and 12.
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
    """The `digits` that split all codebooks equally; ConfigError unless their product is the cardinality."""
    product = math.prod(sizes)
    for k, size in enumerate(arrangement.cardinalities):
        if product != size:
            raise ConfigError(
                f"{who} {list(sizes)} make {product} codes, but codebook {k} has {size}; give sizes with that product"
            )
    return [tuple(sizes)] * arrangement.num_codebooks


class SubTokens:
    """J sub-tokens of the K codebooks of a step, the same number per codebook, in the order of the codebooks.

    Args:
        digits: for each codebook the vocabulary sizes of its sub-tokens, whose product is its cardinality; None: one
            sub-token per codebook, its id.
    """

    def __init__(self, arrangement: CodebookPattern, digits: Sequence[Sequence[int]] | None = None):
        V, specials = arrangement.cardinalities, arrangement.num_specials
        digits = digits or [(size,) for size in V]
        self.parts = len(digits[0])
        """Sub-tokens per codebook."""
        self.codebooks = tuple(k for k in range(len(V)) for _ in range(self.parts))
        """[J]: the codebook of each sub-token."""
        values = [size for sizes in digits for size in sizes]
        self.values = tuple(values)
        """[J]: number of values of codes."""
        first = [j % self.parts == 0 for j in range(len(values))]
        end = arrangement.output_sizes[0] - V[0]
        self.output_sizes = (values[0] + end, *values[1:])
        """[J]: number of values that can be predicted."""
        none = 1 if self.parts > 1 else specials
        self.input_sizes = tuple(size + (specials if first[j] else none) for j, size in enumerate(values))
        """[J]: number of all values, including those of special ids."""
        self.end = values[0] + arrangement.end_ids[0] - V[0]
        """The value of sub-token 0 that ends codebook 0."""
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
        """Sub-tokens [B, J, *] of ids [B, K, *], special ids included."""
        if self.parts == 1:
            return ids
        sizes, _, places, book_sizes, first = self._like(ids)
        ids = ids.repeat_interleave(self.parts, dim=1)
        special = torch.where(first > 0, sizes + ids - book_sizes, sizes)
        return torch.where(ids >= book_sizes, special, ids // places % sizes)

    def join(self, sub_tokens: Tensor) -> Tensor:
        """Ids [B, K, *] of sub-tokens [B, J, *]: the inverse of `split`."""
        if self.parts == 1:
            return sub_tokens
        sizes, _, places, book_sizes, _ = self._like(sub_tokens)
        codes = self.sum(sub_tokens * places)
        beyond = (sub_tokens - sizes)[:, :: self.parts]
        return torch.where(beyond >= 0, book_sizes[:: self.parts] + beyond, codes)

    def targets(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Prediction targets [B, J, *]: sub-tokens of ids [B, K, *] where mask (same shape) is True, IGNORED elsewhere
        and where an id has no such sub-token."""
        if self.parts == 1:
            return torch.where(mask, ids, IGNORED)
        sub_tokens = self.split(ids)
        drawn = mask.repeat_interleave(self.parts, dim=1) & (sub_tokens < self._like(ids)[1])
        return torch.where(drawn, sub_tokens, IGNORED)

    def sum(self, terms: Tensor) -> Tensor:
        """Sum values, for instance losses, over the sub-tokens [B, J, *] of each codebook: [B, K, *]."""
        return terms if self.parts == 1 else terms.unflatten(1, (-1, self.parts)).sum(dim=2)

    def _like(self, ids: Tensor) -> Tensor:
        """[5, J, 1...]: for each sub-token the number of values of codes, the number of predictable values, its place
        value, its codebook's cardinality, and whether it is the first of its codebook."""
        if ids.device not in self._on_device:
            self._on_device[ids.device] = self._constants.to(ids.device)
        return self._on_device[ids.device].view(5, -1, *[1] * (ids.dim() - 2))


def count_bits(cardinalities: tuple[int, ...], who: str) -> list[int]:
    """Bits per code of each codebook; ConfigError unless every cardinality is a power of two."""
    bits = [size.bit_length() - 1 for size in cardinalities]
    for k, size in enumerate(cardinalities):
        if size < 2 or size != 1 << bits[k]:
            raise ConfigError(f"{who} needs codebook sizes that are powers of 2; codebook {k} has {size}")
    return bits
