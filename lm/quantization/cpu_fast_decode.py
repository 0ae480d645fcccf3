"""Fast path for single steps on a CPU with unquantized weights: cpu_gemv.c reads copies of the matrices in its layout.

A small model's step is dominated by Python and torch calls, about thirty per block; one call for all blocks is two to
three times as fast. More than 16 rows, or many positions at once, run in the model's plain layers, where torch's
products are as good. The matrices are in memory twice, so the fast path is used for small models only: steps of large
ones are bound by reading weights, which `pack_` reduces (packed_linear.py).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..kernels import cpu_gemv
from ..kernels.weight_versions import stamp_of
from ..kv_cache.base import Cache
from ..layers.attention_layers import Memory
from ..layers.transformer import Transformer
from ..models.base import LanguageModel
from ..models.causal import TokenLM
from .packed_linear import WeightsName, pack_transformer_, transformers_of

MAX_BYTES = 1 << 28
"""Largest transformer that is copied: the backbone, or that of a depth head."""
NAMES: dict[torch.dtype, WeightsName] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class FastStack:
    """Fast path for single steps of a few rows, on copies of the matrices that `refresh` keeps up to date."""

    def __init__(self, transformer: Transformer):
        self._made: tuple[tuple | None, Any] = (None, None)
        """Stamp of the copied transformer, and its fast path; one tuple, as several threads may generate at once."""
        self.refresh(transformer)

    def refresh(self, transformer: Transformer) -> None:
        """Copy the matrices again if the transformer has changed; without a fast path if it has parts that cannot be
        copied or is not on the CPU."""
        stamp = stamp_of(transformer)
        if stamp != self._made[0]:
            self._made = stamp, None if stamp is None else _copied(transformer)

    def __call__(self, x: Tensor, table: Tensor | None, cache: Cache, memory: Memory | None) -> Tensor | None:
        """Like `cpu_fused_block.FusedStack`."""
        stack = self._made[1]
        plain = x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        return None if plain or stack is None else stack(x, table, cache, memory)


def _copied(transformer: Transformer) -> Any:
    """Fused steps of a copy; None if not supported."""
    name = NAMES.get(next(transformer.parameters()).dtype)
    if name is None:
        return None
    copied = copy.deepcopy(transformer, {id(transformer.fused): None})
    return pack_transformer_(copied, name).fused


def enable_fast_cpu_decode_(lm: LanguageModel) -> LanguageModel:
    """Enable the fast path for single steps of a small model on a CPU with a C compiler; in place, for inference.

    The order of summation differs, so results may differ in their last bits. If weights have changed, the next
    generation copies them again; training mode (`lm.train()`) drops the copies. Masked and next-scale models read many
    rows at once and are left unchanged; of a coarse-to-fine model only the first stage uses the fast path.
    """
    for stage in lm.stages:
        if isinstance(stage, TokenLM) and stage.device.type == "cpu" and not cpu_gemv.why_not():
            for part in (stage.transformer, *transformers_of(stage.head)):
                if _is_small(part):
                    part.fused = FastStack(part)
    return lm


def _is_small(transformer: Transformer) -> bool:
    weights = list(transformer.parameters())
    return weights[0].dtype in NAMES and sum(weight.nbytes for weight in weights) <= MAX_BYTES
