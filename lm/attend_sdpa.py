"""Attention by torch's scaled_dot_product_attention, which has kernels of its own for every device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sight import Rows, Sight, as_mask


def sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Sight, causal: bool) -> Tensor:
    """See `attention.Attend`; rows laid end to end are attended to one by one."""
    if isinstance(mask, Rows):
        pieces = zip(
            queries.split(mask.lengths, dim=2),
            keys.split(mask.key_lengths, dim=2),
            values.split(mask.key_lengths, dim=2),
            mask.masks,
            strict=True,
        )
        return torch.cat([_sdpa(q, k, v, own, mask.causal and own is None) for q, k, v, own in pieces], dim=2)
    return _sdpa(queries, keys, values, as_mask(mask, queries, keys), causal)


def _sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    B, H, S, E = queries.shape
    G = keys.shape[1]
    if S == 1 and G < H and (mask is None or mask.shape[1:3] == (1, 1)):
        # One step: the heads that share a key are its queries, so that keys need not be copied for each.
        grouped = F.scaled_dot_product_attention(queries.reshape(B, G, H // G, E), keys, values, attn_mask=mask)
        return grouped.reshape(B, H, 1, E)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=G < H)
