"""Attention by torch's scaled_dot_product_attention, which has kernels for every device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.linear import lacks_bfloat16
from .mask_types import AttentionMask, PackedSequences, as_mask


def sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, causal: bool) -> Tensor:
    """Implements `registry.Attend`; packed sequences are processed one by one."""
    if isinstance(mask, PackedSequences):
        # Split and concatenate with sequences before heads, the memory layout, which avoids a transpose.
        q, k, v = (x.transpose(1, 2) for x in (queries, keys, values))
        sequences = zip(
            q.split(mask.lengths, dim=1),
            k.split(mask.key_lengths, dim=1),
            v.split(mask.key_lengths, dim=1),
            mask.masks,
            strict=True,
        )
        mixed = [
            _sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), own, mask.causal and own is None)
            for q, k, v, own in sequences
        ]
        return torch.cat([x.transpose(1, 2) for x in mixed], dim=1).transpose(1, 2)
    return _sdpa(queries, keys, values, as_mask(mask, queries, keys), causal)


def _sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    if queries.dtype == torch.bfloat16 and queries.device.type == "cpu" and (queries.requires_grad or lacks_bfloat16()):
        # torch's backward pass in bfloat16 takes up to five times as long as that in float32, on CPUs with AMX too
        with torch.autocast("cpu", enabled=False):
            return _sdpa(queries.float(), keys.float(), values.float(), mask, causal).bfloat16()
    B, H, S, E = queries.shape
    G = keys.shape[1]
    if S == 1 and G < H and (mask is None or mask.shape[1:3] == (1, 1)):
        # Single step: the query heads that share a key head become its queries, so keys need not be copied per head.
        grouped = F.scaled_dot_product_attention(queries.reshape(B, G, H // G, E), keys, values, attn_mask=mask)
        return grouped.reshape(B, H, 1, E)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=G < H)
