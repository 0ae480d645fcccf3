"""Run by test_launch.py in two processes: what DeepSpeed has divided is collected whole, and put back bit for bit."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.models.causal import TokenLM
from tessera.tokenize.spec import AudioGeometry, TokenSpec
from tessera.train.distributed.process_group import ONE_PROCESS, ProcessGroup, join_world, leave_world
from tessera.train.engines.config import DeepSpeedEngineConfig
from tessera.train.engines.deepspeed_engine import DeepSpeedEngine
from tessera.train.engines.torch_engine import TorchEngine
from tessera.train.lm.config import TrainSettings
from tessera.train.lm.objective import Objective


def make(world: ProcessGroup, stage: int, dtype: str) -> DeepSpeedEngine | TorchEngine:
    geometry = AudioGeometry(sample_rate=8000, samples_per_frame=160)
    spec = TokenSpec(name="tiny", cardinalities=(5, 7), geometry=geometry, fingerprint="0" * 64)
    settings = TrainSettings(steps=9, batch=4, lr=0.01, warmup_steps=0, dtype=dtype)
    torch.manual_seed(0)
    # odd sizes: pieces end in the middle of weights, and the last ones are padded
    objective = Objective(TokenLM(LMConfig(width=18, layers=1, heads=3, ffn=11), spec), dtype)
    if stage < 0:
        return TorchEngine(objective, settings, ONE_PROCESS, 1)
    config = DeepSpeedEngineConfig(zero_stage=stage, bucket_elements=1000, persistence_elements=20)
    return DeepSpeedEngine(objective, config, settings, world, 1)


def run(engine, rank: int, steps: range) -> None:
    for step in steps:
        codes = torch.randint(0, 5, (2, 2, 6), generator=torch.Generator().manual_seed(2 * step + rank))
        loss, _, _ = engine.model(codes, None, ConditionBatch(), torch.tensor([24.0, 24.0]))
        engine.backward(loss)
        engine.step()


def whole(engine) -> dict[str, torch.Tensor]:
    with engine.weights(exact=True) as weights:
        return {name: weight.detach().clone() for name, weight in weights.items()}


def main(folder: Path) -> None:
    world = join_world("cpu", always=True)
    for stage in range(4):
        for dtype in ("float32", "bfloat16"):
            where, again = folder / f"{stage}-{dtype}", folder / f"{stage}-{dtype}-again"
            first = make(world, stage, dtype)
            run(first, world.rank, range(3))
            for engine, target in ((first, where), (make(world, stage, dtype), again)):
                if target == again:
                    engine.load(where)
                state = engine.collect()
                assert (state is None) == (not world.is_first)
                if state is not None:
                    state.save(target)
                world.barrier()
                names = ("weights", "optimizer")
                one, other = ({n: load_file(f / f"{n}.safetensors") for n in names} for f in (where, target))
                for name in names:
                    assert all(torch.equal(other[name][key], value) for key, value in one[name].items()), target
                run(engine, world.rank, range(3, 5))
                if target == where:
                    expected = whole(engine)
                found = whole(engine)
                assert all(torch.equal(found[name], weight) for name, weight in expected.items()), target
            plain = make(world, -1, dtype)
            plain.load(where)
            found = whole(plain)
            assert all(
                torch.equal(found[name], weight) for name, weight in load_file(where / "weights.safetensors").items()
            )
    leave_world(world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
