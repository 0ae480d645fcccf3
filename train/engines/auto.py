"""Chooses the engine of a run with `engine: {kind: auto}`.

    deepspeed is not installed      torch
    the CPU                         torch: DeepSpeed processes 3 to 6 % fewer tokens per second there
    one GPU                         torch: ZeRO has nothing to partition
    several GPUs                    deepspeed, ZeRO 1: each process holds its share of the optimizer state

The rule depends only on the device and the number of processes, so every start of a config makes the same choice. The
CPU numbers come from `python benchmarks/engines.py` (docs/training.md); GPUs were not timed. A resumed run keeps the
engine of its checkpoints, whatever the rule says on the new machine.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ...configs.files import read_json
from ...configs.schema import ConfigError, check_config
from ..common.checkpoint import STATE_FILE
from ..distributed.process_group import ProcessGroup
from .config import AutoEngineConfig, DeepSpeedEngineConfig, EngineHolder, TorchEngineConfig

ChosenEngine = TorchEngineConfig | DeepSpeedEngineConfig


def choose_engine(engine: AutoEngineConfig | ChosenEngine, steps: Path, world: ProcessGroup) -> ChosenEngine:
    """Resolve kind auto to an engine config, the same in every process; all processes call this.

    Args:
        steps: folder of the run's checkpoints; it may not exist.
    Raises:
        ImportError: DeepSpeed is requested, or was used by the checkpoints, and is not installed.
    """
    if engine.kind == "deepspeed" and not has_deepspeed():
        raise ImportError(
            "engine kind 'deepspeed' needs the package deepspeed; pip install deepspeed, or set engine.kind=torch"
        )
    if engine.kind != "auto":
        return engine
    made = world.together(lambda: _choose(steps, world) if world.is_first else None)
    shared = world.share(None if made is None else made.model_dump(mode="json"))
    chosen = check_config({"engine": shared}, EngineHolder, "engine").engine
    assert chosen.kind != "auto"
    return chosen


def _choose(steps: Path, world: ProcessGroup) -> ChosenEngine:
    saved = saved_engine(steps)
    if saved is None:
        return engine_for(world.device.type, world.size, has_deepspeed())
    if saved.kind == "deepspeed" and not has_deepspeed():
        raise ImportError(
            f"{steps.parent}: this run was started with DeepSpeed, which is not installed here; pip install deepspeed, "
            "or start another run with another --out"
        )
    return saved


def engine_for(device: str, processes: int, deepspeed: bool) -> ChosenEngine:
    """Apply the rule in the module docstring. device: "cpu" or "cuda"; deepspeed: whether it is installed."""
    if not deepspeed:
        return TorchEngineConfig(because="auto: deepspeed is not installed")
    if device == "cpu":
        return TorchEngineConfig(because="auto: on the CPU DeepSpeed is not faster")
    if processes == 1:
        return TorchEngineConfig(because="auto: one GPU, DeepSpeed has nothing to shard")
    because = f"auto: {processes} GPUs, the optimizer state is sharded"
    return DeepSpeedEngineConfig(zero_stage=1, because=because)


def has_deepspeed() -> bool:
    """Whether the package is installed; does not import it, which takes seconds."""
    return find_spec("deepspeed") is not None


def saved_engine(steps: Path) -> ChosenEngine | None:
    """The engine of the checkpoints in a folder; None if no checkpoint is readable."""
    for folder in sorted(steps.glob("step-*"), reverse=True):
        try:
            found = check_config({"engine": read_json(folder / STATE_FILE)["config"]["engine"]}, EngineHolder)
        except (OSError, KeyError, TypeError, ConfigError, ValueError):
            continue  # a damaged checkpoint; loading decides whether another one can be used
        if found.engine.kind != "auto":
            return found.engine
    return None
