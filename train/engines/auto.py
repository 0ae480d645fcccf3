"""The engine of a run whose config says `engine: {kind: auto}`.

    deepspeed is not installed      torch
    the CPU                         torch: DeepSpeed makes 3 to 6 % fewer tokens a second there
    one GPU                         torch: ZeRO has nothing to divide
    several GPUs                    deepspeed, ZeRO 1: each holds its share of the optimizer's state

The rule looks at the device and the number of processes alone, so every start of a config chooses alike. The numbers of
the CPU are those of `python benchmarks/engines.py` (docs/training.md); on GPUs nothing was timed. A run that is gone on
with keeps the engine of its checkpoints, whatever the rule says where it goes on.
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
    """The engine of a config with kind auto decided, alike in every process; all processes call this.

    Args:
        steps: folder of the run's checkpoints, which need not be there.
    Raises:
        ImportError: DeepSpeed is asked for, or the checkpoints are its own, and it is not installed.
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
            f"{steps.parent}: this run was begun with DeepSpeed, which is not installed here; pip install deepspeed, "
            "or start another run with another --out"
        )
    return saved


def engine_for(device: str, processes: int, deepspeed: bool) -> ChosenEngine:
    """The rule at the head of this file. device: "cpu" or "cuda"; deepspeed: whether it is installed."""
    if not deepspeed:
        return TorchEngineConfig(because="auto: deepspeed is not installed")
    if device == "cpu":
        return TorchEngineConfig(because="auto: on the CPU DeepSpeed is slower")
    if processes == 1:
        return TorchEngineConfig(because="auto: one GPU, DeepSpeed has nothing to divide")
    because = f"auto: {processes} GPUs, each holds its share of the optimizer's state"
    return DeepSpeedEngineConfig(zero_stage=1, because=because)


def has_deepspeed() -> bool:
    """Whether the package is installed; it is not imported, that takes seconds."""
    return find_spec("deepspeed") is not None


def saved_engine(steps: Path) -> ChosenEngine | None:
    """The engine of the checkpoints in a folder; None where there are none that can be read."""
    for folder in sorted(steps.glob("step-*"), reverse=True):
        try:
            found = check_config({"engine": read_json(folder / STATE_FILE)["config"]["engine"]}, EngineHolder)
        except (OSError, KeyError, TypeError, ConfigError, ValueError):
            continue  # a damaged checkpoint; whether another can be used is decided where it is loaded
        if found.engine.kind != "auto":
            return found.engine
    return None
