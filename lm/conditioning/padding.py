"""Conditions whose rows differ in length: checks, dropout, position embeddings, masks and null tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.rotary import sinusoids
from ..ops.row_rng import rand


def check_lengths(name: str, lengths: Tensor | None, num_rows: int, longest: int, things: str, none: str) -> None:
    """Raise ValueError unless `name` is long [B], from 0 to `longest` items; `none` says what 0 means."""
    if lengths is None or lengths.shape != (num_rows,) or lengths.dtype != torch.long:
        raise ValueError(f"{name} must be long [{num_rows}], one for each row (0: {none})")
    if lengths.device.type == "cpu":  # on other devices reading the values would synchronize
        first, last = (int(value) for value in lengths.aminmax())
        if first < 0 or last > longest:
            raise ValueError(f"{name} must be 0 to the {longest} {things} given, found {first} to {last}")


def drop_rows(lengths: Tensor, share: float) -> Tensor:
    """Lengths [B] with a random share of the rows, from torch's generator, set to 0."""
    return torch.where(rand(lengths.shape, lengths.device) < share, 0, lengths)


def with_null(tokens: Tensor, lengths: Tensor, null: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens [B, L, D] with the null [1, D] at index 0 of rows of length 0, and a mask [B, L], True on real tokens
    including the null. None leaves index 0 unchanged."""
    index = torch.arange(tokens.shape[1], device=tokens.device)
    if null is not None:
        tokens = torch.where(((lengths == 0)[:, None] & (index == 0)).unsqueeze(-1), null, tokens)
    return tokens, index < lengths.clamp(min=1)[:, None]


def align_right(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, L, D] and mask [B, L] with the real tokens of each row, in their order, at its end."""
    order = mask.long().argsort(dim=1, stable=True)
    return tokens.gather(1, order.unsqueeze(-1).expand_as(tokens)), mask.gather(1, order)


def mask_or_none(mask: Tensor) -> Tensor | None:
    """The mask, or None if it is all True and checking is free."""
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask


def add_positions(tokens: Tensor, scale: Tensor) -> Tensor:
    """Tokens [B, L, D] plus `sinusoids` times the scale [1]; the sum is float32, the result in the tokens' dtype, which
    is the compute dtype of the following layers.

    Prefix tokens get their positions by rotary embedding in the backbone. Cross-attention has no rotation, so these are
    added.
    """
    return (tokens + scale * sinusoids(tokens.shape[1], tokens.shape[2], tokens.device)).to(tokens.dtype)


def initial_position_scale(width: int) -> Tensor:
    """Initial scale of `sinusoids`, [1]: makes them as large as an embedding."""
    return torch.full((1,), (4 / (5 * width)) ** 0.5)
