"""One optimizer step of a language model: the batch of a step, its micro-batches, and their losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...lm.models.next_patch import side_at
from ...lm.models.transformer_lm import TransformerLM
from ...lm.ops.row_rng import part_of_rows
from ...lm.patterns.pattern import CodebookPattern
from ..common.batch_sampler import Cut, Sampler, mix, parts_of
from ..common.signals import StopRequest
from ..distributed.process_group import ProcessGroup
from ..engines.base import Engine, StepInfo
from .config import TrainConfig
from .dataset import CodesDataset
from .objective import TermCounter
from .sequence_packing import BestFitConfig, PackedSampler


@dataclass(frozen=True)
class LMStepReport:
    """Result of a step, the same in every process."""

    info: StepInfo
    losses: list[float]
    """Mean loss of each codebook (or scale) over the batch, in nats; 0 where the batch has nothing to predict."""
    rows: list[int]
    """Items of the batch, as numbers in the dataset."""
    num_tokens: float
    """Predicted codes in the batch."""
    stopping: bool
    """Whether any process was asked to stop."""

    @property
    def skipped(self) -> bool:
        """The loss or its gradient was not finite; nothing changed."""
        return self.info.skipped


class LMStepper:
    """Runs the steps of a run.

    Args:
        lm: counts the predictions of a batch; its weights are not used.
        cut: how a batch is split.
        engine: holds the weights.
    """

    def __init__(
        self, config: TrainConfig, items: CodesDataset, world: ProcessGroup, cut: Cut, lm: TransformerLM, engine: Engine
    ):
        self.config, self.items, self.world, self.cut, self.engine = config, items, world, cut, engine
        self.sampler = make_sampler(config, items, lm.arrangement)
        self.count_terms = TermCounter(lm)

    def step(self, step: int, stop: StopRequest) -> LMStepReport:
        """Run step `step` of the run (the first is 0); all processes call this."""
        rows_or_bins: Any = self.sampler.batch(step)
        rows = np.hstack(rows_or_bins)
        device = self.world.device
        totals = self.count_terms(self.items.shapes(rows, step))
        side = side_at(self.config.train.patches, step, self.config.train.steps)
        K = len(totals)
        gathered = torch.zeros(K + 1, dtype=torch.float64, device=device)
        for part in parts_of(rows_or_bins, self.cut, self.world.rank, self.world.size):
            batch = self.items.batch(np.hstack(part.items), step)
            if self.cut.parts > 1:
                batch = batch.rows(part.rows)
            batch = batch.to(device)
            # dropout of layers and conditions
            torch.manual_seed(mix(self.config.seed, 1, step, part.number))
            with part_of_rows(part.rows.start, self.cut.size, self.cut.micro):
                loss, sums, _ = self.engine.model(batch.codes, batch.lengths, batch.conditions, totals, side)
            self.engine.backward(loss)
            gathered[:K] += sums
        gathered[K] = float(stop.asked)
        *sums, stopping = self.world.add(gathered).tolist()
        info = self.engine.step()
        losses = [value / max(float(total), 1.0) for value, total in zip(sums, totals, strict=True)]
        return LMStepReport(info, losses, rows.tolist(), float(totals.sum()), stopping > 0)


def make_sampler(config: TrainConfig, items: CodesDataset, arrangement: CodebookPattern) -> Sampler | PackedSampler:
    """The batch sampler of a config: padded rows, or packed sequences."""
    if isinstance(config.data.packing, BestFitConfig):
        steps = [arrangement.num_steps(int(length) + arrangement.variable_length) for length in items.lengths]
        return PackedSampler(steps, config.train.batch, config.seed, config.data.packing)
    return Sampler(items.lengths, config.train.batch, config.seed, config.data.pool_batches)
