"""Collate items of a dataset into a batch of the language model, padded to the longest item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...lm.conditioning.registry import ConditionBatch
from ...tokenize.codes import pad_and_cat


@dataclass(frozen=True)
class Batch:
    """A batch of examples, padded to equal length."""

    codes: Tensor
    """[B, K, T] long, 0 beyond an example's length."""
    lengths: Tensor | None
    """[B] frames; None if every example has T."""
    conditions: ConditionBatch

    def rows(self, index: slice) -> Batch:
        """The selected examples, with the same padding."""
        lengths = None if self.lengths is None else self.lengths[index]
        return Batch(self.codes[index], lengths, self.conditions.rows(index))

    def to(self, device: torch.device) -> Batch:
        """Copy to another device."""
        lengths = None if self.lengths is None else self.lengths.to(device, non_blocking=True)
        return Batch(self.codes.to(device, non_blocking=True), lengths, self.conditions.to(device))


def collate(
    codes: Sequence[Tensor],
    labels: Sequence[int] | None,
    texts: Sequence[Sequence[int]] | None,
    prompts: Sequence[Tensor | None] | None,
    aligned: Sequence[tuple[list[int], list[int]]] | None = None,
    embedding_width: int | None = None,
    states: Sequence[Tensor] | None = None,
    given: Sequence[int] | None = None,
) -> Batch:
    """Batch of B examples; None for a condition that the model does not have.

    Args:
        codes: [K, T] long each; of sequences of text and audio [K + 1, P].
        labels: label ids.
        texts: token ids, not empty.
        prompts: codes [K, L] long each, None for an example without a prompt.
        aligned: (ids, frames) of the units of each aligned text.
        embedding_width: of the condition embedding.
        states: its vectors, [L, width] float32 each; None: no example has any.
        given: leading positions of sequences of text and audio that are not predicted.
    """
    lengths = torch.tensor([item.shape[1] for item in codes])
    found = prompts if prompts is not None and any(prompt is not None for prompt in prompts) else None
    units = None if aligned is None else [ids for ids, _ in aligned]
    durations = None if aligned is None else [frames for _, frames in aligned]
    conditions = ConditionBatch.make(labels, texts, states, codes=found, aligned=units, frames=durations)
    if prompts is not None and found is None:
        nothing = codes[0].new_zeros(len(codes), len(codes[0]) - (given is not None), 1)
        conditions = replace(conditions, codes=nothing, codes_lengths=torch.zeros_like(lengths))
    if embedding_width is not None and states is None:
        nothing = torch.zeros(len(codes), 1, embedding_width)
        conditions = replace(conditions, embedding=nothing, embedding_lengths=torch.zeros_like(lengths))
    if given is not None:
        conditions = replace(conditions, given=torch.tensor(given))
    equal = bool((lengths == lengths[0]).all())
    return Batch(pad_and_cat([item[None] for item in codes]), None if equal else lengths, conditions)
