"""Order of the channels that a rotary embedding rotates in pairs: half-split (Llama, Qwen, transformers) or interleaved
(Tessera, and Meta's Llama code).

    one head, E = 6        half-split         a0 a1 a2 b0 b1 b2         pair i is (i, i + E / 2)
                           interleaved        a0 b0 a1 b1 a2 b2         pair i is (2 i, 2 i + 1)

Both give the same attention scores if the rows of the query and key matrices, and the weights of the norms of queries
and keys, are reordered alike. The reordering is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


def interleaved_rows(heads: int, head_width: int) -> Tensor:
    """Rows of a half-split matrix in interleaved order: `interleaved = half_split[interleaved_rows(H, E)]`.

    Args:
        heads: H, query or key heads. head_width: E, even.
    Returns:
        long [H * E]; heads stay in place.
    Raises:
        ValueError: an odd head width.
    """
    if head_width % 2:
        raise ValueError(f"a rotary embedding rotates pairs of channels, but a head has {head_width}")
    rows = torch.arange(heads * head_width, device="cpu")
    return rows.view(heads, 2, head_width // 2).transpose(1, 2).flatten()


def half_split_rows(heads: int, head_width: int) -> Tensor:
    """The inverse: `half_split = interleaved[half_split_rows(H, E)]`; arguments and errors as above."""
    return interleaved_rows(heads, head_width).argsort()
