"""Exponential moving average of the weights, used for evaluation, samples and export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ...configs.files import read_safetensors, write_safetensors

M = TypeVar("M", bound=nn.Module)


class WeightAverage(Generic[M]):
    """A float32 copy of the model whose weights track those in training.

    ema <- d ema + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is soon
    forgotten. With decay 0 the copy holds the weights themselves, copied by `refresh`.

    Weights that do not learn are those that the model has when it is given.

    Args:
        model: a separate model instance (not the one in training), changed in place.
        decay: 0 <= decay < 1.
    """

    def __init__(self, model: M, decay: float):
        self.learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        """Names of the weights that learn."""
        self.model: M = model.eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Update the average after an optimizer step; no effect with decay 0."""
        if self.decay == 0:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self._averages():
            average.lerp_(weights[name].to(average.dtype), 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def refresh(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights; for decay 0, or before the first update."""
        assert self.updates == 0, "the average would be lost"
        for name, average in self._averages():
            average.copy_(weights[name])

    @torch.no_grad()
    def settle(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights that change no more, so that the average does not approach them over many steps."""
        for name, weight in weights.items():
            self.model.get_parameter(name).copy_(weight)

    @property
    def num_bytes(self) -> int:
        """Size of the file that `save` writes; 0 with decay 0, which is not saved."""
        return 4 * sum(average.numel() for _, average in self._averages()) if self.decay else 0

    def save(self, folder: Path) -> None:
        """Write ema.safetensors."""
        tensors = {name: tensor.detach().cpu() for name, tensor in self._averages()}
        write_safetensors(folder / "ema.safetensors", tensors, {"updates": str(self.updates)})

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Load ema.safetensors."""
        tensors, metadata = read_safetensors(folder / "ema.safetensors")
        self.updates = int(metadata["updates"])
        for name, average in self._averages():
            average.copy_(tensors[name])

    def _averages(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that learn."""
        own = dict(self.model.named_parameters())
        return ((name, own[name]) for name in self.learning)
