"""Speculative decoding: multi-token prediction drafts several steps, one forward pass verifies them all.

    read      column of step s - 1, drafts of s, s + 1, s + 2          one forward pass over 4 positions
    choose    step s: as drafted - step s + 1: as drafted - step s + 2: another id, which is used; the cache entries
              of this draft and of those after it are dropped

Every id is sampled from the model's logits, given the ids before it, with the random number of its step and
codebook. The codes therefore equal those of plain decoding, not only in distribution (except that kernels may round
differently for several positions). It pays if reading weights costs more than computing: few rows, good drafts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...lm.models.causal import TokenLM
from ..requests.request import Request
from .loop import DecodeLoop


class SpeculativeLoop(DecodeLoop):
    """A DecodeLoop whose `step` produces one or more steps."""

    drafts = True

    def __init__(self, lm: TokenLM, request: Request):
        """Check the request and prefill the conditions.

        Raises:
            ValueError: the model was not trained to predict `draft` steps ahead; and as in `DecodeLoop`.
        """
        self.draft, known = request.config.draft, lm.ahead.steps if lm.ahead is not None else 0
        """Number of steps to draft."""
        if not 1 <= self.draft <= known:
            how = f"use a draft from 1 to {known}" if known else "train it with lm.ahead, or leave draft out"
            raise ValueError(f"draft is {self.draft}, but the model predicts {known} steps ahead; {how}")
        super().__init__(lm, request)
        self.drafted = 0
        """Number of columns after the position that hold drafts."""
        self.reads = 0
        """Forward passes so far."""

    @torch.no_grad()
    def step(self) -> None:
        """Generate the ids of the next step, and of later steps whose drafts are right in all rows."""
        first, drafted = self.position, self.drafted
        hidden = self._forward(first + drafted, 1 + drafted)
        self.reads += 1
        for i in range(1 + drafted):
            draft = self.buffers.columns[:, :, first + i + 1].clone()
            self._sample(first + i, hidden[:, i])
            if i == drafted or not torch.equal(draft, self.buffers.columns[:, :, first + i + 1]):
                break
        self.position = first + i + 1
        self.lm.rewind(self.state, self.position)
        self._write_drafts(hidden[:, i])

    def _write_drafts(self, hidden: Tensor) -> None:
        """Write drafts of the steps from the position on, given the hidden state [R, D] of the step before it."""
        assert self.lm.ahead is not None
        self.drafted = max(0, min(self.draft, self.num_steps - 1 - self.position))
        for ahead in range(self.drafted):
            self._sample(self.position + ahead, self.lm.ahead(hidden, ahead + 1), is_draft=True)

    def _sample(self, s: int, hidden: Tensor, is_draft: bool = False) -> None:
        columns, given = self.buffers.columns, self.buffers.given
        columns[:, :, s + 1] *= given[:, :, s]  # a head with several stages must not read an old draft
        super()._sample(s, hidden, is_draft)
