"""Top-k selection in which rounding errors do not break ties.

    values      0.9   0.5   0.5+e   0.5   0.1        two are wanted: the first, and one of the three tied values
    preference   -     2      7      4     -         the one with the largest preference, regardless of rounding

Kernels round differently for different batches, so mathematically equal values are ranked arbitrarily. Values within a
small width of the last one wanted count as ties and are ranked by a preference that does not depend on rounding. The
width is chosen so that no value is near its edge, where rounding would decide.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = 4
"""Number of widths tried: `close`, and 2, 4 and 8 times as much."""
MARGIN = 0.25
"""As a fraction of `close`: how near to an edge a value may not be."""


def largest(values: Tensor, count: Tensor | int, preference: Tensor, close: Tensor | float) -> Tensor:
    """True [B, N] on the `count` largest values of each row.

    Args:
        values: [B, N], floating point; -inf is never chosen.
        count: [B, 1] long, or one number for all rows; at most the number of values above -inf.
        preference: [B, N], distinct within a row.
        close: [B, 1] or a number: values that differ by less are ties, as are some that differ by up to 8 times as
            much.
    """
    N = values.shape[1]
    ordered = values.sort(dim=1, descending=True).values
    count = torch.as_tensor(count, device=values.device).expand(len(values), 1)
    last = ordered.gather(1, (count - 1).clamp(0, N - 1))
    equal = is_small((values - last).abs(), close)
    above = (values > last) & ~equal
    rank = preference.masked_fill(~equal, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return above | (equal & (rank < count - above.sum(dim=1, keepdim=True)))


def is_small(distances: Tensor, close: Tensor | float) -> Tensor:
    """True [*, N] on distances [*, N] that are 0 up to rounding: less than `close`, [*, 1] or a number, or than a small
    multiple of it."""
    close = torch.as_tensor(close, dtype=distances.dtype, device=distances.device).expand(*distances.shape[:-1], 1)
    widths = close * torch.arange(WIDTHS, device=distances.device).exp2()
    near = (distances.unsqueeze(-2) - widths.unsqueeze(-1)).abs() < MARGIN * close.unsqueeze(-1)
    chosen = near.any(dim=-1).byte().argmin(dim=-1, keepdim=True)  # the first without a distance near it
    return distances < widths.gather(-1, chosen)
