"""Loss of a model on held-out data."""

from __future__ import annotations

import torch
from torch import Tensor

from ...lm.models.base import LanguageModel
from ..distributed.process_group import ProcessGroup
from .dataset import CodesDataset, batches_by_length
from .objective import Objective


@torch.no_grad()
def evaluate_loss(
    lm: LanguageModel, items: CodesDataset, batch: int, world: ProcessGroup, dtype: str = "float32"
) -> Tensor:
    """Mean loss over all items; each process evaluates a share of the batches, and all call this.

    Args:
        lm: in eval mode. batch: examples per batch. dtype: as `train.dtype`.
    Returns:
        [K] float64 on the CPU, nats per prediction of each part (lm.loss_parts).
    """
    objective = Objective(lm, dtype)
    sums_and_counts = torch.zeros(2, lm.loss_parts.count, dtype=torch.float64, device=world.device)
    for rows in batches_by_length(items.lengths, batch)[world.rank :: world.size]:
        found = items.batch(rows).to(world.device)
        _, sums, counts = objective(found.codes, found.lengths, found.conditions)
        sums_and_counts += torch.stack([sums, counts.double()])
    sums, counts = world.add(sums_and_counts).cpu()
    return sums / counts
