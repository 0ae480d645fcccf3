"""The bits head: predicts the integer codes of lookup-free quantizers bit by bit.

`BitsInput` (layers/input_embedding.py) is the matching input embedding.

    code 5 of 16 (4 bits)     input           (+1, -1, +1, -1)      lowest bit first
                              predicted as    0 1 0 1               4 sub-tokens of 2 values, highest bit first
                              in 2 groups     1 1                   2 sub-tokens of 4 values: 5 = 4 * 1 + 1

So 2^18 codes need a table of 18 vectors and 36 logits.
Sources: MAGVIT-2 (arXiv:2310.05737) and BSQ (arXiv:2406.07548) for the codes, MaskBit (arXiv:2409.16211) for bits as
input and for the groups.
"""

from __future__ import annotations

from typing import Literal

from ...configs.schema import Config, ConfigError, LayerCount
from ..patterns.sub_tokens import count_bits
from .base import HeadContext
from .parallel import ParallelHead


class BitsHeadConfig(Config):
    """Bits of all codebooks, or groups of them, predicted independently."""

    kind: Literal["bits"] = "bits"
    groups: LayerCount | None = None
    """Groups of a code's bits, with 2^(bits / groups) logits each; null: every bit separately."""


class BitsHead(ParallelHead):
    """A parallel head whose sub-tokens are bits or groups of bits."""

    def __init__(self, config: BitsHeadConfig, context: HeadContext):
        bits = count_bits(context.arrangement.cardinalities, "lm.head kind 'bits'")
        groups = config.groups or bits[0]
        for count in bits:
            if count % groups:
                raise ConfigError(
                    f"lm.head.groups: codes of {count} bits cannot be split into {groups} groups; choose a divisor of "
                    f"{', '.join(str(one) for one in sorted(set(bits)))}"
                )
        digits = [(1 << count // groups,) * groups for count in bits]
        super().__init__(config, context, digits)
