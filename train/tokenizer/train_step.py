"""One optimizer step of a tokenizer: micro-batches, adversarial loss, and the balance of the losses.

    media ──► network ──► reconstruction ──► output losses ──► gradient (train/losses/balancer.py) ─┐
                 │                   └─────► discriminators                                         │
                 └──► inner losses ─────────────────────────────────────────────────────────────────┴──► backward, once
    all micro-batches ──► step of the tokenizer, step of the discriminators, one update of the codebooks

Tokenizer and discriminators both use the other's state before the step, so that the result does not depend on how the
batch is split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..common.batch_sampler import mix
from ..common.signals import StopRequest
from ..discriminators.registry import Discriminators
from ..distributed.process_group import ProcessGroup
from ..engines.base import StepInfo
from ..engines.torch_engine import TorchEngine
from ..losses.balancer import Balance
from ..losses.base import MediaBatch
from .config import TokenizerTrainConfig
from .dataset import MediaInMemory
from .objective import Passed, TokenizerObjective, output_gradients, surrogate


@dataclass(frozen=True)
class TokenizerStepReport:
    """Result of a step."""

    info: StepInfo
    terms: dict[str, float]
    """Loss -> its mean over the batch, unweighted; "judge" is the discriminator loss."""
    loss: float
    """Weighted sum of the losses."""
    codes_in_batch: list[int]
    """Distinct codes of each codebook in the last micro-batch of this process."""
    stopping: bool
    """Whether any process was asked to stop."""

    @property
    def skipped(self) -> bool:
        """A loss or its gradient was not finite; nothing changed."""
        return self.info.skipped


class TokenizerStepper:
    """Runs the steps of one stage.

    Args:
        config: resolved. micro: examples per micro-batch.
        engine, judge_engine: of this stage; judge_engine is None if no active loss needs discriminators.
    """

    def __init__(
        self,
        config: TokenizerTrainConfig,
        media: MediaInMemory,
        world: ProcessGroup,
        micro: int,
        balance: Balance,
        engine: TorchEngine,
        judge_engine: TorchEngine | None,
    ):
        self.config, self.media, self.world, self.micro = config, media, world, micro
        self.balance, self.engine, self.judge_engine = balance, engine, judge_engine
        assert isinstance(engine.objective, TokenizerObjective)
        self.objective = engine.objective
        self.weights = {term.key: term.weight for term in config.terms}

    def step(self, step: int, stop: StopRequest) -> TokenizerStepReport:
        """Run step `step` of the run (the first is 0); all processes call this."""
        rows = self.media.rows(step)
        judging = self.judge_engine is not None and self.is_judged(step)
        weights = self._output_weights(judging)
        if self.balance.missing(weights):
            self._measure(step, rows, weights)
        totals: dict[str, Tensor] = {}
        measured: dict[str, Tensor] = {}
        used: list[int] = []
        for number in self._numbers(len(rows)):
            batch, passed = self._pass(step, rows, number, self.engine.model)
            found = self._through_output(step, batch, passed, weights, judging)
            _add(totals, {name: loss.detach().double().sum() for name, loss in (passed.inner | found.losses).items()})
            _add(measured, found.measured)
            loss = surrogate(passed, found.gradient, self.weights, batch.batch_items)
            finite = torch.stack([loss.detach().isfinite().all() for loss in (passed.inner | found.losses).values()])
            # The constant factor on the reconstruction hides a bad loss whose gradient happens to be finite.
            self.engine.backward(loss * torch.where(finite.all(), 1.0, torch.nan))
            if passed.quantized is not None:
                used = [len(codes[codes >= 0].unique()) for codes in passed.quantized.codes.flatten(0, -2).T]
        info = self.engine.step()
        if judging and self.judge_engine is not None:
            self.judge_engine.step()
        stopping = self._after(info, totals, measured, len(rows), judging, stop)
        terms = {name: float(total) / len(rows) for name, total in totals.items()}
        loss = sum(self.weights.get(name, 0.0) * value for name, value in terms.items())
        return TokenizerStepReport(info, terms, loss, used, stopping)

    def is_judged(self, step: int) -> bool:
        """Whether this step uses the discriminators."""
        judges = self.config.judges
        return judges is not None and step >= judges.first_step and step % judges.every == 0

    def _output_weights(self, judging: bool) -> dict[str, float]:
        on = self.objective.output_on
        return {name: self.weights[name] for name in on if self.weights[name] and (judging or not on[name].judged)}

    def _numbers(self, items: int) -> range:
        """Micro-batches of this process; see batch_sampler.micro_batches."""
        return range(self.world.rank, items // self.micro, self.world.size)

    def _pass(self, step: int, rows: np.ndarray, number: int, model) -> tuple[MediaBatch, Passed]:
        batch = self.media.batch(step, rows, number * self.micro, self.micro).to(self.world.device)
        torch.manual_seed(mix(self.config.seed, 1, step, number))  # for level dropout and similar
        return batch, model(batch)

    def _through_output(
        self, step: int, batch: MediaBatch, passed: Passed, weights: Mapping[str, float], judging: bool
    ) -> _Output:
        """Losses and gradients at the reconstruction; also the backward pass of the discriminators."""
        if passed.found is None:
            return _Output({}, None, {})
        if not weights:  # their only loss is inactive in this step
            return _Output({}, torch.zeros_like(passed.found), {})
        judges, excerpt = None, slice(None)
        if self.judge_engine is not None and self.config.judges is not None and self.is_judged(step):
            judges = self.judge_engine.objective
            assert isinstance(judges, Discriminators)
            excerpt = self.media.excerpt(step, self.config.judges.seconds)
        view = self.objective.view(batch, passed.found, judges=judges, excerpt=excerpt)
        losses = self.objective.output_losses(view, weights)
        if judging and self.judge_engine is not None:
            real, fake = view.judged()
            with self.objective.precision(fake.device):
                loss = self.judge_engine.model(real, fake)
            loss = loss.unflatten(0, (len(batch.media), -1)).mean(1)  # over the channels of an example
            self.judge_engine.backward(loss.float().sum() / batch.batch_items)
        gradients, measured = output_gradients(self.objective, self.balance, losses, weights, passed.found)
        if judging:
            losses = losses | {"judge": loss.detach()}
        factors = self.balance.factors(weights)
        total = torch.stack([factors[group] * gradient for group, gradient in gradients.items()]).sum(0)
        return _Output(losses, total, measured)

    def _measure(self, step: int, rows: np.ndarray, weights: Mapping[str, float]) -> None:
        """Measure the gradient norms of the losses with the current network, without training."""
        measured: dict[str, Tensor] = {}
        for number in self._numbers(len(rows)):
            batch, passed = self._pass(step, rows, number, self.objective)
            _add(measured, self._through_output(step, batch, passed, weights, judging=False).measured)
        self.objective.net.quantizer.forget()
        self._note(measured, len(rows))

    def _note(self, measured: Mapping[str, Tensor], items: int) -> None:
        self.balance.note({group: self.world.add(total.clone()) for group, total in measured.items()}, items)

    def _after(
        self, info: StepInfo, totals: dict[str, Tensor], measured: dict[str, Tensor], items: int, judging: bool,
        stop: StopRequest,
    ) -> bool:  # fmt: skip
        """Joint work of all processes after a step; fills `totals` with sums over all of them."""
        flat = torch.stack(
            [*totals.values(), torch.full((), float(stop.asked), dtype=torch.float64).to(self.world.device)]
        )
        *sums, stopping = self.world.add(flat).unbind()
        totals.update(zip(totals, sums, strict=True))
        if info.skipped:
            self.objective.net.quantizer.forget()
        else:
            if self.objective.quantize:
                self.objective.net.quantizer.update()
            self._note(measured, items)
        if judging and self.judge_engine is not None:
            assert isinstance(self.judge_engine.objective, Discriminators)
            self.judge_engine.objective.update(self.world)
        return float(stopping) > 0


@dataclass(frozen=True)
class _Output:
    losses: dict[str, Tensor]
    gradient: Tensor | None
    measured: dict[str, Tensor]


def _add(totals: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, value in more.items():
        totals[name] = totals[name] + value if name in totals else value
