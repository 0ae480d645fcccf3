"""Dense attention masks.

Positions count the prefix (P condition tokens) first, then the steps. For P = 2, three steps and a window of 2; rows
are queries, columns are keys:

            p0 p1 s0 s1 s2
    p0       x
    p1       x  x
    s0       x  x  x
    s1       x  x  x  x
    s2       x  x  .  x  x        `.`: more than window - 1 steps back
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def causal_mask(
    queries: Tensor,
    keys: Tensor,
    prefix_length: int = 0,
    prefix_mask: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """bool [B or 1, 1, n, m], True where query n attends to key m: itself and all before it, except prefix padding.

    Args:
        queries: [n] long, positions.
        keys: [m] long, positions; negative ones are empty slots.
        prefix_length: P, positions that every step attends to.
        prefix_mask: [B, P] bool, False on padding, which only attends to itself, so that its softmax is not empty.
        window: attention window in steps, the query's own included; None: unlimited.
    """
    row, column = queries[:, None], keys[None, :]
    seen = (column <= row) & (column >= 0)
    if window is not None:
        seen &= (column > row - window) | (column < prefix_length)
    if prefix_mask is None:
        return seen[None, None]
    real = torch.nn.functional.pad(prefix_mask, (0, 1), value=True)  # the last entry stands for all steps
    real = real[:, keys.clamp(0, prefix_length)]
    return (seen & (real[:, None, :] | (row == column)))[:, None]


def block_mask(blocks: Sequence[int], prefix_mask: Tensor | None = None) -> Tensor:
    """bool [B or 1, 1, n, n], block-causal: each position attends to its own block and all earlier blocks.

    Args:
        blocks: size of each block in order, n in total; each of the first P positions is its own block if there is a
            prefix.
        prefix_mask: [B, P] bool, False on padding, as for `causal_mask`.

    Blocks of 1, 1 (a prefix) and 3:    x . . . .
                                        x x . . .
                                        x x x x x
                                        x x x x x
                                        x x x x x
    """
    block = torch.repeat_interleave(torch.tensor(blocks))
    seen = block[:, None] >= block[None, :]
    if prefix_mask is None:
        return seen[None, None]
    seen = seen.to(prefix_mask.device)
    real = torch.nn.functional.pad(prefix_mask, (0, len(block) - prefix_mask.shape[1]), value=True)
    return (seen & (real[:, None, :] | torch.eye(len(block), dtype=torch.bool, device=seen.device)))[:, None]
