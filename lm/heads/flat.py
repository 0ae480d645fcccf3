"""The flat head: computes logits only for the codebooks present in a step, for patterns that spread a frame's codebooks
over several steps. With one code per step it needs 1/K of the compute and memory of the parallel head.

    partial_flat [0, 1, 1]    step       0  1  2  3
                              codebooks  a  b  a  b
                                            c     c
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ..ops.linear import Linear
from ..ops.loss import cross_entropy
from ..patterns.sub_tokens import SubTokens
from .base import HeadContext


class FlatHeadConfig(Config):
    """Linear layers for the codebooks present in a step; for the patterns flat and partial_flat."""

    kind: Literal["flat"] = "flat"
    output: Literal["own", "shared"] = "own"
    """own: one layer per codebook. shared: one for all."""


class FlatHead(nn.Module):
    """The flat head; the methods implement `base.Head`."""

    def __init__(self, config: FlatHeadConfig, context: HeadContext):
        super().__init__()
        arrangement = context.arrangement
        kind = arrangement.config.kind
        if kind not in ("flat", "partial_flat"):
            raise ConfigError(
                f"lm.head kind 'flat' needs arrangement flat or partial_flat, found '{kind}', which puts the codes "
                "of all codebooks into one step; use head kind parallel or depth"
            )
        self.sub_tokens = SubTokens(arrangement)
        self.period = arrangement.layout.strides[0]
        self.phases = [offset % self.period for offset in arrangement.layout.offsets]
        """[K]: codebook k is present in steps phases[k], phases[k] + period, ..."""
        self.stages = [
            tuple(k for k, found in enumerate(self.phases) if found == phase) for phase in range(self.period)
        ]
        sizes = self.sub_tokens.output_sizes
        self.outputs = nn.ModuleList(
            Linear(context.width, size, bias=False) for size in ([max(sizes)] if config.output == "shared" else sizes)
        )

    def initialize_(self) -> None:
        pass

    def forward(self, hidden: Tensor, ids: Tensor | None = None, first_step: int = 0) -> Tensor:
        """The logits of absent codebooks are 0."""
        sizes = self.sub_tokens.output_sizes
        found = [self._logits(k, hidden[:, self._steps(k, first_step)]) for k in range(len(sizes))]
        logits = found[0].new_zeros(*hidden.shape[:2], len(sizes), max(sizes))
        for k, size in enumerate(sizes):
            logits[:, self._steps(k, first_step), k, :size] = found[k]
            logits[:, :, k, size:] = float("-inf")
        return logits

    def losses(self, hidden: Tensor, ids: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
        targets = self.sub_tokens.targets(ids, mask)
        terms = torch.zeros(targets.shape, device=hidden.device)
        for k in range(targets.shape[1]):
            steps = self._steps(k, 0)
            terms[:, k, steps] = cross_entropy(self._logits(k, hidden[:, steps]), targets[:, k, steps], label_smoothing)
        return terms

    def stages_at(self, step: int) -> tuple[tuple[int, ...], ...]:
        return (self.stages[step % self.period],)

    def start(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        return None

    def begin(self, memory: None, hidden: Tensor, step: int) -> tuple[Tensor, tuple[int, ...]]:
        return hidden, self.stages[step % self.period]

    def predict(self, begun: tuple[Tensor, tuple[int, ...]], stage: int, sub_tokens: Tensor) -> Tensor:
        hidden, books = begun
        found = [self._logits(k, hidden) for k in books]
        V = max(logits.shape[1] for logits in found)
        return torch.stack([nn.functional.pad(x, (0, V - x.shape[1]), value=float("-inf")) for x in found], dim=1)

    def _steps(self, k: int, first_step: int) -> slice:
        """The steps with codebook k, relative to first_step."""
        return slice((self.phases[k] - first_step) % self.period, None, self.period)

    def _logits(self, k: int, hidden: Tensor) -> Tensor:
        output = self.outputs[0] if len(self.outputs) == 1 else self.outputs[k]
        return output(hidden)[..., : self.sub_tokens.output_sizes[k]]
