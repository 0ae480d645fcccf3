"""Weights and optimizer state on disk: unpartitioned, in float32, readable by any engine on any number of processes.

weights.safetensors      NAME                                         the weights that the optimizer updates
optimizer.safetensors    NAME.exp_avg, NAME.exp_avg_sq, NAME.step     of AdamW; absent before the first step
engine.json              {"kind", "steps"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...configs.files import read_json, read_safetensors, write_json, write_safetensors

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class EngineState:
    """Engine state needed to resume."""

    kind: str
    """Kind of the engine that saved it."""
    steps: int
    """Calls of `step`, including skipped ones."""
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """Empty before the first step."""

    @property
    def num_bytes(self) -> int:
        """Size on disk, without headers."""
        return sum(
            tensor.numel() * tensor.element_size() for tensor in (*self.weights.values(), *self.moments.values())
        )

    def save(self, folder: Path) -> None:
        """Write the files."""
        write_safetensors(folder / WEIGHTS_FILE, {name: stored(tensor) for name, tensor in self.weights.items()})
        if self.moments:
            moments = {name: stored(tensor) for name, tensor in self.moments.items()}
            write_safetensors(folder / "optimizer.safetensors", moments)
        write_json(folder / "engine.json", {"kind": self.kind, "steps": self.steps})

    @classmethod
    def load(cls, folder: Path) -> EngineState:
        """Load the files that `save` wrote.

        Raises:
            ValueError: these are DeepSpeed's own files, from earlier versions.
        """
        described = read_json(folder / "engine.json")
        if not (folder / WEIGHTS_FILE).exists():
            raise ValueError(
                f"{folder}: saved by an earlier version in DeepSpeed's own files; resume with "
                "engine.kind=deepspeed and "
                f"engine.zero_stage={described.get('zero_stage')}, the next checkpoint is read by any engine"
            )
        weights, _ = read_safetensors(folder / WEIGHTS_FILE)
        moments: dict[str, Tensor] = {}
        if (folder / "optimizer.safetensors").exists():
            moments, _ = read_safetensors(folder / "optimizer.safetensors")
        return cls(described["kind"], int(described["steps"]), weights, moments)


def stored(tensor: Tensor) -> Tensor:
    """A tensor as stored: on the CPU, float32, contiguous."""
    return tensor.detach().to("cpu", torch.float32).contiguous()
