"""Speculative decoding: multi-token prediction drafts several steps, one forward pass verifies them all.

    read      column of step s - 1, drafts of s, s + 1, s + 2          one forward pass over 4 positions
    choose    step s: as drafted - step s + 1: as drafted - step s + 2: another id, which is used; the cache entries
              of this draft and of those after it are dropped

Every id is sampled from the model's logits, given the ids before it, with the random number of its step and
codebook. The codes therefore equal those of plain decoding, not only in distribution (except that kernels may round
differently for several positions). It pays if reading weights costs more than computing: few rows, good drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...lm.conditioning.registry import ConditionBatch
from ...lm.generation_config import Guidance
from ...lm.kv_cache.config import CacheChoice
from ...lm.models.causal import TokenLM
from ..execution.step_runner import StepName
from ..requests.settings import Length
from ..sampling.filters import SamplingConfig
from .loop import DecodeLoop


class DraftedLoop(DecodeLoop):
    """A DecodeLoop whose `step` produces one or more steps."""

    drafts = True

    def __init__(
        self,
        lm: TokenLM,
        conditions: ConditionBatch,
        seeds: Sequence[int],
        length: Length,
        sampling: SamplingConfig | None = None,
        guidance: Guidance = 1.0,
        prompt: Tensor | None = None,
        cache: CacheChoice | None = None,
        draft: int = 1,
        step: StepName = "eager",
    ):
        """Arguments as in `DecodeLoop`.

        Args:
            draft: number of draft steps, at most the number the model was trained to predict ahead.
        Raises:
            ValueError: the model was not trained to predict this number of steps; and as in `DecodeLoop`.
        """
        known = lm.ahead.steps if lm.ahead is not None else 0
        if not 1 <= draft <= known:
            how = f"use a draft of 1 to {known}" if known else "train it with lm.ahead, or leave draft out"
            raise ValueError(f"draft is {draft}, but the model guesses {known} steps ahead; {how}")
        super().__init__(lm, conditions, seeds, length, sampling, guidance, prompt, cache, step)
        self.draft = draft
        self.guessed = 0
        """Number of columns after the position that hold drafts."""
        self.reads = 0
        """Forward passes so far."""

    @torch.no_grad()
    def step(self) -> None:
        """Generate the ids of the next step, and of later steps whose drafts are right in all rows."""
        first, guessed = self.position, self.guessed
        hidden = self._read_to(first + guessed, 1 + guessed)
        self.reads += 1
        for i in range(1 + guessed):
            guess = self.board.columns[:, :, first + i + 1].clone()
            self._choose(first + i, hidden[:, i])
            if i == guessed or not torch.equal(guess, self.board.columns[:, :, first + i + 1]):
                break
        self.position = first + i + 1
        self.lm.rewind(self.state, self.position)
        self._guess(hidden[:, i])

    def _guess(self, hidden: Tensor) -> None:
        """Write drafts of the steps from the position on, given the hidden state of the step before it."""
        assert self.lm.ahead is not None
        self.guessed = max(0, min(self.draft, self.num_steps - 1 - self.position))
        for ahead in range(self.guessed):
            s = self.position + ahead
            self._choose(s, self.lm.ahead(hidden, ahead + 1), is_guess=True)

    def _choose(self, s: int, hidden: Tensor, is_guess: bool = False) -> None:
        columns, given = self.board.columns, self.board.given
        columns[:, :, s + 1] *= given[:, s]  # a head with several stages must not read an old draft
        super()._choose(s, hidden, is_guess)
