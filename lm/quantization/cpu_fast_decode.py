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
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads.parallel import ParallelHead
from ..kernels import cpu_gemv
from ..kernels.weight_versions import stamp_of
from ..kv_cache.base import Cache
from ..layers.attention_layers import Memory
from ..layers.embedding import SpecialVectors
from ..layers.input_embedding import CodesInput, NoisyInput
from ..layers.transformer import Transformer
from ..models.base import LanguageModel
from ..models.causal import TokenLM
from ..ops.linear import Linear
from .packed_linear import PackedLinear, WeightsName, codes_head, pack_, pack_transformer_, transformers_of

MAX_BYTES = 1 << 28
"""Largest part that is copied: the backbone, the parallel head, or the transformer of a depth head."""
MOST_INPUTS = 1 << 22
"""Largest table of `FastInput`, in numbers."""
NUMBERS = (torch.float32, torch.bfloat16)


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


class FastHead:
    """Fast path of the parallel head for single steps of a few rows, on a copy of its matrix."""

    def __init__(self, head: ParallelHead):
        self._made: tuple[tuple | None, PackedLinear | None] = (None, None)
        """As in `FastStack`."""
        self.refresh(head)

    def refresh(self, head: ParallelHead) -> None:
        """Copy the matrix again if it has changed; as for `FastStack.refresh`."""
        stamp = stamp_of(head, (ParallelHead,))
        if stamp == self._made[0]:
            return
        weight, layer = head.weight, None
        if stamp is not None and weight is not None and weight.dtype in NUMBERS:
            layer = PackedLinear(weight, head.offset, _smallest([weight]))
        self._made = stamp, layer

    def __call__(self, hidden: Tensor) -> Tensor | None:
        """hidden [R, D] -> [R, outputs], or None if it has to take the plain way."""
        layer = self._made[1]
        plain = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or hidden.device.type != "cpu"
        if layer is None or plain or hidden.dtype not in NUMBERS or len(hidden) > cpu_gemv.MAX_ROWS:
            return None
        return layer(hidden)


class FastInput:
    """Fast path of the input embedding `codes` for single steps of a few rows: one table of what each id adds."""

    def __init__(self, embedding: nn.Module):
        self._made: tuple[tuple | None, tuple[Tensor, Tensor] | None] = (None, None)
        """As in `FastStack`: first rows of the codebooks [K, 1], and the table [ids, D]."""
        self.refresh(embedding)

    @torch.no_grad()
    def refresh(self, embedding: nn.Module) -> None:
        """Compute the table again if a weight has changed; as for `FastStack.refresh`."""
        embedding = embedding.inner if type(embedding) is NoisyInput else embedding
        stamp = stamp_of(embedding, (CodesInput, Linear, SpecialVectors))
        if stamp == self._made[0]:
            return
        made = None
        if stamp is not None and type(embedding) is CodesInput and embedding.linear.weight.dtype == torch.float32:
            parts = [embedding.vectors_of(book) for book in range(len(embedding.starts))]
            ends = torch.tensor([len(part) for part in parts]).cumsum(0)[:, None]
            made = F.pad(ends[:-1], (0, 0, 1, 0)), torch.cat(parts)
        self._made = stamp, made

    def __call__(self, ids: Tensor) -> Tensor | None:
        """ids [B, K, S] -> [B, S, D], or None if it has to take the plain way."""
        made = self._made[1]
        plain = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or ids.device.type != "cpu"
        if made is None or plain or ids.shape[0] * ids.shape[2] > cpu_gemv.MAX_ROWS:
            return None
        starts, table = made
        return F.embedding((ids + starts).transpose(1, 2), table).sum(dim=2)


def _copied(transformer: Transformer) -> Any:
    """Fused steps of a copy; None if not supported."""
    if next(transformer.parameters()).dtype not in NUMBERS:
        return None
    matrices = [layer.weight for layer in transformer.modules() if isinstance(layer, nn.Linear)]
    copied = copy.deepcopy(transformer, {id(transformer.fused): None})
    return pack_transformer_(copied, _smallest(matrices)).fused


def _smallest(matrices: list[Tensor]) -> WeightsName:
    """The smallest kind of packed weights that holds these matrices exactly."""
    exact = all(torch.equal(weight.detach(), weight.detach().bfloat16().to(weight.dtype)) for weight in matrices)
    return "bfloat16" if exact else "float32"


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
            head = codes_head(stage.head)
            if type(head) is ParallelHead and head.weight is not None and _is_small(head):
                head.fused = FastHead(head)
            if sum(stage.arrangement.input_sizes) * stage.config.width <= MOST_INPUTS:
                stage.fused = FastInput(stage.input)
    return lm


def prepare_fast_cpu_decode_(lm: LanguageModel) -> LanguageModel:
    """The fastest exact steps on a CPU, in place, for inference: `enable_fast_cpu_decode_`, and for a large model in
    bfloat16 `pack_`, because torch takes twice as long for its products. What is packed cannot be trained any more."""
    for stage in lm.stages:
        packs = isinstance(stage, TokenLM) and stage.device.type == "cpu" and not cpu_gemv.why_not()
        matrices = [weight for weight in stage.transformer.parameters() if weight.dim() == 2] if packs else []
        if packs and not _is_small(stage.transformer) and {weight.dtype for weight in matrices} == {torch.bfloat16}:
            pack_(stage, "bfloat16")
        else:
            enable_fast_cpu_decode_(stage)
    return lm


def _is_small(part: nn.Module) -> bool:
    weights = list(part.parameters())
    return weights[0].dtype in NUMBERS and sum(weight.nbytes for weight in weights) <= MAX_BYTES
