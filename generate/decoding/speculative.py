"""Drafted decoding: guess several steps, let the model read them all at once, keep those it would have chosen.

    read      column of step s - 1, guesses of s, s + 1, s + 2         one run of the model over 4 positions
    choose    step s: as guessed - step s + 1: as guessed - step s + 2: another id, taken; what was read of it and
              of the guesses after it is forgotten

Every id is drawn from the model's own logits, after the ids before it, with the random number of its own step and
codebook. So the codes are those of plain decoding, and not only their distribution (save that kernels may round
differently for several positions). It pays where reading weights costs more than computing: few rows, good guesses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...lm.conditioning.registry import ConditionBatch
from ...lm.generation_config import Guidance
from ...lm.kv_cache.registry import CacheChoice
from ...lm.models.causal import TokenLM
from ..execution.step_runner import StepName
from ..requests.settings import Length
from ..sampling.filters import SamplingConfig
from .loop import DecodeLoop


class DraftedLoop(DecodeLoop):
    """A DecodeLoop whose `step` makes one step or more."""

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
        """Arguments as `DecodeLoop`.

        Args:
            draft: steps to guess at a time, at most those the model was trained to look ahead.
        Raises:
            ValueError: the model was not trained to guess so many steps; and as `DecodeLoop`.
        """
        known = lm.ahead.steps if lm.ahead is not None else 0
        if not 1 <= draft <= known:
            how = f"use a draft of 1 to {known}" if known else "train it with lm.ahead, or leave draft out"
            raise ValueError(f"draft is {draft}, but the model guesses {known} steps ahead; {how}")
        super().__init__(lm, conditions, seeds, length, sampling, guidance, prompt, cache, step)
        self.draft = draft
        self.guessed = 0
        """Columns behind the position that hold guesses."""
        self.reads = 0
        """Runs of the model so far."""

    @torch.no_grad()
    def step(self) -> None:
        """Make the ids of the next step, and of those after it that were guessed right in all rows."""
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
        """Write guesses of the steps from the position on, from the hidden state of the step before it."""
        assert self.lm.ahead is not None
        self.guessed = max(0, min(self.draft, self.num_steps - 1 - self.position))
        for ahead in range(self.guessed):
            s = self.position + ahead
            self._choose(s, self.lm.ahead(hidden, ahead + 1), is_guess=True)

    def _choose(self, s: int, hidden: Tensor, is_guess: bool = False) -> None:
        columns, given = self.board.columns, self.board.given
        columns[:, :, s + 1] *= given[:, s]  # a head of several stages must not read what is left of a guess
        super()._choose(s, hidden, is_guess)
