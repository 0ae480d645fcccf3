"""Prefill: allocates the KV cache of a generation and runs the conditions' prefix through the transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...tokenize.spec import ImageGeometry
from ..attention.registry import WITH_CACHE_LENGTH
from ..conditioning.registry import ConditionBatch, FusedConditions
from ..kv_cache.base import Cache, CacheShape
from ..kv_cache.config import CacheChoice
from .decoding_state import DecodingState
from .shape_buckets import pad_to_buckets
from .transformer_lm import TransformerLM

MakeCache = Callable[["CacheChoice | None", CacheShape], Cache]


@torch.no_grad()
def prefill(
    lm: TransformerLM,
    make_cache: MakeCache,
    conditions: ConditionBatch | None,
    capacity: int,
    num_rows: int | None,
    num_frames: int | Tensor | None = None,
    cache: CacheChoice | None = None,
    bucketed: bool = False,
) -> DecodingState:
    """The state before the first step; arguments and errors as for `TokenLM.start`.

    Args:
        make_cache: allocates the KV cache that `cache` names.
    """
    if capacity < 1:
        raise ValueError(
            f"capacity is {capacity} steps; it must be at least 1 (T frames need arrangement.num_steps(T))"
        )
    if lm.training and lm.config.dropout:
        raise ValueError("the model is in training mode, its dropout would change every step; call lm.eval() first")
    batch = (conditions or ConditionBatch()).to(lm.device)
    lm.conditions.check(batch, num_rows)
    B = batch.num_rows if batch.num_rows is not None else num_rows
    if B is None:
        raise ValueError("the model has no conditions, so the number of rows is unknown; pass num_rows")
    if num_frames is None and isinstance(lm.spec.geometry, ImageGeometry):
        num_frames = lm.spec.geometry.num_frames
    lm.refresh()
    fused, first = lm.split_first(_conditions_as_in_eval(lm, batch))
    if bucketed and num_frames is not None:
        num_frames = torch.tensor(num_frames, device=lm.device)
    if bucketed:
        fused = pad_to_buckets(fused, all(c.kind == "label" for c in lm.config.conditions if c.join == "prefix"))
    memory = lm.cross_attention_memory(fused)
    shape = _cache_shape(lm, B, capacity, fused)
    head = lm.head.start(B, shape.dtype, lm.device)
    state = DecodingState(
        cache=make_cache(cache, shape),
        memory=memory,
        summed=fused.summed,
        first=first,
        prefix_mask=fused.prefix_mask,
        prefix_length=shape.prefix_length,
        capacity=capacity,
        num_frames=num_frames,
        units=fused.units,
        adaptive=fused.adaptive,
        beside=fused.beside,
        head=head,
    )
    if fused.prefix is not None:
        _read_prefix(lm, state, fused.prefix)
    return state


def _conditions_as_in_eval(lm: TransformerLM, batch: ConditionBatch) -> FusedConditions:
    if not lm.conditions.training:
        return lm.conditions(batch)
    lm.conditions.eval()  # generation never uses condition dropout, even during training
    try:
        return lm.conditions(batch)
    finally:
        lm.conditions.train()


def _cache_shape(lm: TransformerLM, num_rows: int, capacity: int, fused: FusedConditions) -> CacheShape:
    config = lm.config
    return CacheShape(
        layers=config.layers,
        num_rows=num_rows,
        kv_heads=config.num_kv_heads,
        head_width=config.head_width,
        num_steps=capacity,
        dtype=_compute_dtype(lm),
        device=lm.device,
        prefix_length=0 if fused.prefix is None else fused.prefix.shape[1],
        prefix_mask=fused.prefix_mask,
        window=config.window,
        counted=config.attention in WITH_CACHE_LENGTH,
    )


def _compute_dtype(lm: TransformerLM) -> torch.dtype:
    if torch.is_autocast_enabled(lm.device.type):
        return torch.get_autocast_dtype(lm.device.type)
    return lm.dtype


def _read_prefix(lm: TransformerLM, state: DecodingState, prefix: Tensor) -> None:
    """Write the keys and values of the prefix [B, P, D] to the cache."""
    none = torch.arange(0, device=lm.device)
    x = prefix.to(lm.dtype)  # precomputed vectors may have another dtype
    x = lm.positions.add(x, none, state.prefix_length, state.prefix_mask)
    table = lm.positions.table(none, state.num_frames, state.prefix_length, state.prefix_mask)
    lm.transformer(x, table, memory=state.memory, cache=state.cache, condition=state.adaptive)
