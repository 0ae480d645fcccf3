"""Loss of a model on held-out data."""

from __future__ import annotations

import torch
from torch import Tensor

from ...lm.models.base import LanguageModel
from ...lm.patterns.text_stream import Task
from ..distributed.process_group import ProcessGroup
from .dataset import CodesDataset, batches_by_length
from .objective import Objective


def evaluate_loss(
    lm: LanguageModel, items: CodesDataset, batch: int, world: ProcessGroup, dtype: str = "float32"
) -> Tensor:
    """Mean loss over all items; each process evaluates a share of the batches, and all call this.

    Args:
        lm: in eval mode. batch: examples per batch. dtype: as `train.dtype`.
    Returns:
        [K] float64 on the CPU, nats per prediction of each part (lm.loss_parts).
    """
    return evaluate_tasks(lm, items, batch, world, dtype)[0]


@torch.no_grad()
def evaluate_tasks(
    lm: LanguageModel, items: CodesDataset, batch: int, world: ProcessGroup, dtype: str = "float32"
) -> tuple[Tensor, dict[Task, float]]:
    """`evaluate_loss`, and for a model with a text stream, which reads every item as each task, the mean loss of each.

    The mean of a task is over the parts that it predicts.
    """
    objective, parts = Objective(lm, dtype), lm.loss_parts
    total = torch.zeros(2, parts.count, dtype=torch.float64)
    means: dict[Task, float] = {}
    for task in (None,) if items.tasks is None else items.tasks.tasks:
        sums_and_counts = torch.zeros(2, parts.count, dtype=torch.float64, device=world.device)
        for rows in batches_by_length(items.lengths, batch)[world.rank :: world.size]:
            found = items.batch(rows, task=task).to(world.device)
            _, sums, counts = objective(found.codes, found.lengths, found.conditions)
            sums_and_counts += torch.stack([sums, counts.double()])
        own = world.add(sums_and_counts).cpu()
        total += own
        if task is not None:
            shares = torch.tensor(parts.shares, dtype=torch.float64) * (own[1] > 0)
            means[task] = float((shares * own[0] / own[1].clamp(min=1)).sum() / shares.sum())
    sums, counts = total
    return sums / counts.clamp(min=1), means
