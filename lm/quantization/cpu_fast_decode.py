"""Quick single steps on a CPU for a model as it is loaded: cpu_gemv.c reads copies of its matrices, laid out for it.

A small model's step is mostly Python and torch's calls, some thirty a block; one call for all blocks is two to three
times as fast. More than 16 rows, and many positions at once, are left to the model's plain layers: there torch's own
products are as good. So the matrices are in memory twice, and only small models are quickened: steps of large
ones are bound by reading weights, which `pack_` makes fewer (packed_linear.py).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..kernels import cpu_gemv
from ..kernels.weight_versions import stamp_of
from ..kv_cache.base import Cache
from ..layers.transformer import Memory, Transformer
from ..models.causal import TokenLM
from ..models.coarse_to_fine import CoarseToFine
from ..models.registry import AnyLM
from .packed_linear import WeightsName, pack_transformer_, transformers_of

MOST_BYTES = 1 << 28
"""Of a transformer that is copied: the backbone, a depth head's own."""
NAMES: dict[torch.dtype, WeightsName] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class QuickStack:
    """Single steps of a few rows, by copies of a transformer's matrices, which `refresh` keeps up to date."""

    def __init__(self, transformer: Transformer):
        self._made: tuple[tuple | None, Any] = (None, None)
        """What the copies were made of, and the steps; set whole, as several threads may generate at the same time."""
        self.refresh(transformer)

    def refresh(self, transformer: Transformer) -> None:
        """Copy the matrices anew where the transformer is not what it was; where it has parts that cannot be copied, or
        is not on the CPU, there are no quick steps."""
        stamp = stamp_of(transformer)
        if stamp != self._made[0]:
            self._made = stamp, None if stamp is None else _copied(transformer)

    def __call__(self, x: Tensor, table: Tensor | None, cache: Cache, memory: Memory | None) -> Tensor | None:
        """As `fused.FusedStack`."""
        stack = self._made[1]
        plain = x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        return None if plain or stack is None else stack(x, table, cache, memory)


def _copied(transformer: Transformer) -> Any:
    """Fused steps of a copy; None where there are none."""
    name = NAMES.get(next(transformer.parameters()).dtype)
    if name is None:
        return None
    copied = copy.deepcopy(transformer, {id(transformer.fused): None})
    return pack_transformer_(copied, name).fused


def enable_fast_cpu_decode_(lm: AnyLM) -> AnyLM:
    """Make single steps of a small model on a CPU quick, where there is a C compiler; in place, for inference.

    Sums are in another order, so results may differ in their last bits. Where weights have changed, the next generation
    copies them anew; the copies are forgotten when the model goes into training (`lm.train()`). Masked and next-scale
    models read many rows at once and are left alone; of a coarse-to-fine model the first stage is quickened.
    """
    if isinstance(lm, CoarseToFine):
        enable_fast_cpu_decode_(lm.coarse)
    elif type(lm) is TokenLM and lm.device.type == "cpu" and not cpu_gemv.why_not():
        for part in (lm.transformer, *transformers_of(lm.head)):
            if _is_small(part):
                part.fused = QuickStack(part)
    return lm


def _is_small(transformer: Transformer) -> bool:
    weights = list(transformer.parameters())
    return weights[0].dtype in NAMES and sum(weight.nbytes for weight in weights) <= MOST_BYTES
