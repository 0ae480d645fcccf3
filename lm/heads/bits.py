"""Codes that are integers of bits, as lookup-free quantizers make them, predicted as bits.

`BitsInput` (layers/input_embedding.py) reads them as bits.

    code 5 of 16 (4 bits)     read as         (+1, -1, +1, -1)      the bit of value 1 first
                              predicted as    0 1 0 1               4 symbols of 2 values, the largest bit first
                              in 2 groups     1 1                   2 symbols of 4 values: 5 = 4 * 1 + 1

So 2^18 codes take a table of 18 vectors and 36 logits.
Sources: MAGVIT-2 (arXiv:2310.05737) and BSQ (arXiv:2406.07548) for the codes, MaskBit (arXiv:2409.16211) for reading
bits and for the groups.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...configs.schema import Config, ConfigError, LayerCount
from ..patterns.pattern import CodebookPattern
from ..patterns.sub_tokens import count_bits
from .parallel import ParallelHead


class BitsHeadConfig(Config):
    """Bits of all codebooks, or groups of them, predicted independently of each other."""

    kind: Literal["bits"] = "bits"
    groups: LayerCount | None = None
    """Groups of a code's bits, of 2^(bits / groups) logits each; null: each bit by itself."""


class BitsHead(ParallelHead):
    """A parallel head whose symbols are bits or groups of bits."""

    def __init__(
        self, config: BitsHeadConfig, width: int, arrangement: CodebookPattern, code_vectors: Tensor | None = None
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
