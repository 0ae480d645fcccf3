"""Training on packed sequences: no position is spent on padding.

    padded, 3 rows           packed, one row
    p  a0 a1 a2 a3           p a0 a1 a2 a3 p q b0 b1 p c0 c1 c2
    p  q  b0 b1 .
    p  c0 c1 c2 .            p, q: the conditions' prefix

Positions restart in each sequence, and attention is block-diagonal (`PackedSequences`). The loss equals that of the
padded batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...configs.schema import ConfigError
from ..attention.mask_types import PackedSequences
from ..conditioning.registry import ConditionBatch, FusedConditions, beside_at
from ..config import LMConfig
from ..layers.attention_layers import Memory
from ..ops.loss import LossReport
from ..ops.rotary import SinusoidalConfig, sinusoidal_embedding
from .base import LanguageModel
from .causal import TokenLM


def packed_loss(
    lm: LanguageModel,
    codes: Tensor,
    lengths: Tensor | None = None,
    conditions: ConditionBatch | None = None,
    label_smoothing: float = 0.0,
) -> LossReport:
    """`TokenLM.loss` of the same batch, computed without padding; same arguments and errors.

    Lengths of rows and of their prefixes become Python numbers, which synchronizes a GPU once.
    """
    assert isinstance(lm, TokenLM), "check_packable refuses other kinds"
    batch = conditions or ConditionBatch()
    arranged = lm.arranged(codes, lengths, batch)
    lm.conditions.check(batch, codes.shape[0])
    B, _, S = arranged.ids.shape
    frames = [codes.shape[2]] * B if lengths is None else lengths.tolist()
    counts = [lm.arrangement.num_steps(length + lm.arrangement.variable_length) for length in frames]
    steps = torch.arange(S, device=codes.device)
    inside = steps < torch.tensor(counts, device=codes.device)[:, None]
    row, step = inside.nonzero(as_tuple=True)  # of every packed step, [N]

    joined, first = lm.split_first(lm.conditions(batch))
    x = lm.input(_cells(lm.read_ids(arranged.ids, batch.given), inside))
    if first is not None:
        x = torch.where((step == 0)[:, None], first[row, 0].to(x.dtype), x)
    if joined.summed is not None:
        x = x + joined.summed.index_select(0, row).transpose(0, 1)
    if joined.beside is not None:
        x = x + beside_at(joined.beside, steps)[inside].unsqueeze(0).to(x.dtype)
    pointers = lm.place_steps(joined, codes, lengths)
    if joined.units is not None and pointers is not None:
        x = x + joined.units.at(pointers.read)[inside].unsqueeze(0).to(x.dtype)

    P, present, prefixes = 0, inside, [0] * B
    if joined.prefix is not None:
        P = joined.prefix.shape[1]
        x, present, prefixes = _insert_prefixes(x, joined.prefix, joined.prefix_mask, inside)
    packed_lengths = [prefix + count for prefix, count in zip(prefixes, counts, strict=True)]

    # Positions and rotations are computed for the padded batch, which is cheap, and then selected.
    if isinstance(lm.config.rope, SinusoidalConfig):
        positions = lm.positions.of(steps, P, joined.prefix_mask).expand(B, -1)[present].unsqueeze(0)
        x = x + sinusoidal_embedding(positions, lm.config.width, lm.config.rope.base).to(x.dtype)
    total_frames = codes.shape[2] if lengths is None else lengths[:, None]
    table = lm.positions.table(steps, total_frames, P, joined.prefix_mask)
    if table is not None:
        table = table.expand(B, -1, -1, -1)[present].unsqueeze(0)
    mask = PackedSequences(packed_lengths, codes.device, prefixes=prefixes, window=lm.config.window)
    memory = _packed_memory(lm, joined, packed_lengths)
    hidden = lm.transformer(lm.dropout(x), table, mask=mask, memory=memory)
    if P:
        hidden = hidden[:, present.nonzero(as_tuple=True)[1] >= P]

    ids, counted = _cells(arranged.ids, inside), _cells(arranged.mask, inside)
    advances = lm.advance_losses(hidden, joined, pointers, inside)
    report = lm.report(lm.head.losses(hidden, ids, counted, label_smoothing), counted, advances)
    if lm.ahead is None or not lm.training:
        return report
    ahead = lm.ahead.losses(lm.head, hidden, ids, counted, label_smoothing, step)
    return replace(report, ahead=ahead.sum(dim=(0, 2)) / report.count.clamp(min=1))


def check_packable(config: LMConfig) -> None:
    """Raise ConfigError unless a model with this config can be trained on packed sequences."""
    if config.kind != "causal":
        raise ConfigError(
            f"data.packing: packed sequences need an lm of kind 'causal', found "
            f"kind '{config.kind}'; use packing kind padded"
        )


def _cells(x: Tensor, inside: Tensor) -> Tensor:
    """Select the cells of x [B, K, S] where inside [B, S] is True: [1, K, N]."""
    return x.transpose(1, 2)[inside].t().unsqueeze(0)


def _insert_prefixes(
    x: Tensor, prefix: Tensor, prefix_mask: Tensor | None, inside: Tensor
) -> tuple[Tensor, Tensor, list[int]]:
    """Put the real prefix tokens of each row before its steps.

    Args:
        x: [1, N, D], the steps of all rows, packed.
        prefix: [B, P, D]; prefix_mask: [B, P] bool, True on real tokens; None: all are.
        inside: [B, S] bool, True on the steps of each row.
    Returns:
        The packed tokens [1, N', D], the mask of all that are packed [B, P + S], and the number of prefix tokens of
        each row.
    """
    real = inside.new_ones(prefix.shape[:2]) if prefix_mask is None else prefix_mask
    x = torch.cat([prefix[real].to(x.dtype).unsqueeze(0), x], dim=1).index_select(1, _order(real, inside))
    return x, torch.cat([real, inside], dim=1), real.sum(1).tolist()


def _order(real: Tensor, inside: Tensor) -> Tensor:
    """The packing order of all prefix tokens (real [B, P]) followed by all steps (inside [B, S]): row by row, each
    row's prefix before its steps."""
    number = torch.cat([real, inside], dim=1).long()
    P, num_tokens, num_steps = real.shape[1], int(real.sum()), int(inside.sum())
    present = number.bool()
    number[:, :P][real] = torch.arange(num_tokens, device=real.device)
    number[:, P:][inside] = torch.arange(num_tokens, num_tokens + num_steps, device=real.device)
    return number[present]


def _packed_memory(lm: TokenLM, joined: FusedConditions, lengths: list[int]) -> Memory | None:
    """Keys and values for cross-attention, packed as well."""
    if joined.memory is None:
        return None
    memory, real = joined.memory.to(next(lm.parameters()).dtype), joined.memory_mask
    B, L, _ = memory.shape
    counts = [L] * B if real is None else real.sum(1).tolist()
    tokens = memory.flatten(0, 1) if real is None else memory[real]
    return lm.transformer.project_memory(tokens.unsqueeze(0), PackedSequences(lengths, memory.device, counts))
