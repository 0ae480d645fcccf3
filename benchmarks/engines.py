"""Training speed of the torch engine and of DeepSpeed in one process, on the device at hand.

    python benchmarks/engines.py --device cpu --threads 1
    python benchmarks/engines.py --device cuda --dtypes bfloat16 float32

Small language models of the shipped configs' shapes take whole training steps (forward, backward, clipping, AdamW) on
made-up codes of a fixed length. The engines take turns, --steps steps each. tokens/s counts codes; the ratio's median
and quartiles are over turns. DeepSpeed is stage 1 as `engine: {kind: auto}` would run it. Time is that of the processor
on the CPU (all threads together), and of the wall on CUDA. train/engines/auto.py holds the rule that follows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tessera.configs.schema import check_config
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.pattern import DelayConfig
from tessera.tokenize.spec import AudioGeometry, TokenSpec
from tessera.train.distributed.process_group import ProcessGroup, join_world
from tessera.train.engines.base import Engine
from tessera.train.engines.config import DeepSpeedEngineConfig
from tessera.train.engines.torch_engine import TorchEngine
from tessera.train.lm.config import TrainSettings
from tessera.train.lm.objective import Objective

SHAPES = {"digits": (128, 4, 4, 64, 49), "speech": (192, 5, 4, 16, 100), "musicgen/2": (512, 12, 8, 4, 250)}
"""Name -> width, layers, heads, items of a batch, frames of an item."""
K, V = 4, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["digits", "speech"])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    world = join_world(arguments.device, always=True)
    report = []
    print(f"{'shape':<12} {'dtype':<9} {'torch tokens/s':>15} {'DeepSpeed':>10}  DeepSpeed / torch (quartiles)")
    for shape in arguments.shapes:
        for dtype in arguments.dtypes:
            found = measure(shape, dtype, world, arguments.steps, arguments.turns)
            report.append(found)
            low, middle, high = found["ratio"]
            print(
                f"{shape:<12} {dtype:<9} {found['torch']:>15,.0f} {found['deepspeed']:>10,.0f}"
                f"  {middle:.2f} ({low:.2f} - {high:.2f})",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(shape: str, dtype: str, world: ProcessGroup, steps: int, turns: int) -> dict:
    """Codes a second of both engines, and the quartiles of their ratio."""
    width, layers, heads, batch, frames = SHAPES[shape]
    settings = check_config({"steps": 100_000, "batch": batch, "lr": 1e-3, "dtype": dtype}, TrainSettings)
    engines: dict[str, Engine] = {
        "torch": TorchEngine(objective(width, layers, heads, dtype, world), settings, world, 1),
        "deepspeed": deepspeed_engine(objective(width, layers, heads, dtype, world), settings, world),
    }
    codes = torch.randint(V, (batch, K, frames), device=world.device)
    clock: Callable[[], float] = time.perf_counter if world.device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(turns + 1):
        for name in list(engines)[:: 1 if turn % 2 else -1]:
            engine = engines[name]
            began = settled(clock, world)
            for _ in range(steps):
                engine.backward(engine.model(codes, None, ConditionBatch())[0])
                engine.step()
            if turn:  # the first turn warms up
                seconds[name].append(settled(clock, world) - began)
    ratios = [a / b for a, b in zip(seconds["torch"], seconds["deepspeed"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    rate = {name: steps * codes.numel() / statistics.median(taken) for name, taken in seconds.items()}
    return {"shape": shape, "dtype": dtype, "device": str(world.device), **rate, "ratio": [low, middle, high]}


def objective(width: int, layers: int, heads: int, dtype: str, world: ProcessGroup) -> Objective:
    """Four codebooks with delays, no conditions."""
    geometry = AudioGeometry(sample_rate=16000, samples_per_frame=320)
    spec = TokenSpec(name="none", cardinalities=(V,) * K, geometry=geometry, fingerprint="0" * 64)
    config = LMConfig(width=width, layers=layers, heads=heads, qk_norm=True, arrangement=DelayConfig())
    torch.manual_seed(0)
    return Objective(TokenLM(config, spec).to(world.device).train(), dtype)


def deepspeed_engine(made: Objective, settings: TrainSettings, world: ProcessGroup) -> Engine:
    """The other engine; imported here, it prints and takes seconds."""
    from tessera.train.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(made, DeepSpeedEngineConfig(zero_stage=1), settings, world, 1)


def settled(clock: Callable[[], float], world: ProcessGroup) -> float:
    """The time when the device has done all it was given."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return clock()


if __name__ == "__main__":
    main()
