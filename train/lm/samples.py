"""Samples during training. This file does not generate them: the caller of a run passes a callable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...lm.checkpoints.model_directory import LoadedModel
from .dataset import CodesDataset
from .setup import TrainingSetup


@dataclass(frozen=True)
class SampleRequest:
    """Input of the callable, which may write any files into `folder`."""

    model: LoadedModel
    folder: Path
    labels: list[str] | None
    """Labels to generate, None for a model without a label condition."""
    texts: list[str] | None
    """Texts to generate, None for a model without a text condition."""
    voices: list[Tensor] | None
    """Codes [K, L] of prompts, None for a model without the condition, or if an item has none."""
    count: int
    """Number of samples, equal to the number of labels or texts."""
    seed: int


Sample = Callable[[SampleRequest], None]


def make_request(model: LoadedModel, parts: TrainingSetup, folder: Path, count: int, seed: int) -> SampleRequest:
    """Request all labels in turn, and the texts of the first test items (or training items)."""
    labels = [model.labels[number % len(model.labels)] for number in range(count)] if model.labels else None
    reads = model.text is not None or parts.items.states is not None
    texts = _texts(parts.test or parts.items, count) if reads else None
    voices = [found for row in range(count) if (found := _prompt(parts.test or parts.items, row)) is not None]
    return SampleRequest(model, folder, labels, texts, voices if len(voices) == count else None, count, seed)


def _prompt(items: CodesDataset, row: int) -> Tensor | None:
    """The prompt of the item whose text is used."""
    return items.prompt(row % len(items), 0)


def _texts(items: CodesDataset, count: int) -> list[str]:
    texts = items.shards.texts()
    return [items.captions(str(texts[int(items.numbers[row % len(items)])]), 0, row) for row in range(count)]
