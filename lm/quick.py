"""Quick single steps on a CPU for a model as it is loaded: skinny.c reads copies of its matrices, laid out for it.

A small model's step is mostly Python and torch's calls, some thirty a block; one call for all blocks is two to three
times as fast. More than 16 rows, and many positions at once, are left to the model's plain layers: there torch's own
products are as good. So the matrices are in memory twice, and only small models are quickened: steps of large
ones are bound by reading weights, which `pack_` makes fewer (quantise.py).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from . import skinny
from .cache import Cache
from .kinds import AnyLM
from .model import TokenLM
from .quantise import WeightsName, pack_transformer_, transformers_of
from .stages import CoarseToFine
from .transformer import Memory, Transformer

MOST_BYTES = 1 << 28
"""Of a transformer that is copied: the backbone, a depth head's own."""
NAMES: dict[torch.dtype, WeightsName] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class QuickStack:
    """Single steps of a few rows, by copies of a transformer's matrices.

    Args:
        transformer: as it is now; a later change of its weights is not seen.
    """

    def __init__(self, transformer: Transformer):
        dtype = next(transformer.parameters()).dtype
        self.stack: Any = pack_transformer_(copy.deepcopy(transformer), NAMES[dtype]).fused

    def __call__(self, x: Tensor, table: Tensor | None, cache: Cache, memory: Memory | None) -> Tensor | None:
        """As `fused.FusedStack`."""
        plain = x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        return None if plain or self.stack is None else self.stack(x, table, cache, memory)


def quicken_(lm: AnyLM) -> AnyLM:
    """Make single steps of a small model on a CPU quick, where there is a C compiler; in place, for inference.

    Sums are in another order, so results may differ in their last bits. The copies are forgotten when the model goes
    into training (`lm.train()`). Masked and next-scale models read many rows at once and are left alone; of a
    coarse-to-fine model the first stage is quickened.
    """
    if isinstance(lm, CoarseToFine):
        quicken_(lm.coarse)
    elif type(lm) is TokenLM and lm.device.type == "cpu" and not skinny.why_not():
        for part in (lm.transformer, *transformers_of(lm.head)):
            if _is_small(part):
                part.fused = QuickStack(part)
    return lm


def _is_small(transformer: Transformer) -> bool:
    weights = list(transformer.parameters())
    return weights[0].dtype in NAMES and sum(weight.nbytes for weight in weights) <= MOST_BYTES
