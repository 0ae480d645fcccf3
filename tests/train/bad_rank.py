"""Run by test_launch.py in two processes: a gradient that is infinite in one of them changes no weight in either."""

import sys

import torch

from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.models.causal import TokenLM
from tessera.tokenize.spec import AudioGeometry, TokenSpec
from tessera.train.distributed.process_group import join_world, leave_world
from tessera.train.engines.config import DeepSpeedEngineConfig
from tessera.train.engines.deepspeed_engine import DeepSpeedEngine
from tessera.train.engines.torch_engine import TorchEngine
from tessera.train.lm.config import TrainSettings
from tessera.train.lm.objective import Objective


def main(kind: str, dtype: str) -> None:
    geometry = AudioGeometry(sample_rate=8000, samples_per_frame=160)
    spec = TokenSpec(name="tiny", cardinalities=(5, 7), geometry=geometry, fingerprint="0" * 64)
    settings = TrainSettings(steps=9, batch=4, lr=0.01, warmup_steps=0, dtype=dtype)
    world = join_world("cpu", always=True)
    torch.manual_seed(0)
    objective = Objective(TokenLM(LMConfig(width=16, layers=1, heads=2), spec), dtype)
    if kind == "torch":
        engine = TorchEngine(objective, settings, world, 1)
    else:
        engine = DeepSpeedEngine(objective, DeepSpeedEngineConfig(zero_stage=int(kind)), settings, world, 1)
    codes = torch.randint(0, 5, (2, 2, 6), generator=torch.Generator().manual_seed(world.rank))
    before = None
    for step, spoilt in enumerate((False, True, True, False)):
        loss, _, _ = engine.model(codes, None, ConditionBatch(), torch.tensor([24.0, 24.0]))
        if spoilt and world.rank == 1:
            loss = loss * torch.inf
        engine.backward(loss)
        skipped = engine.step().skipped
        with engine.weights(exact=True) as weights:
            now = {name: weight.detach().clone() for name, weight in weights.items()}
        assert skipped == spoilt, f"step {step}: skipped is {skipped}"
        if before is not None:
            same = all(torch.equal(now[name], before[name]) for name in now)
            assert same == spoilt, f"step {step}: weights {'stayed' if same else 'changed'}"
        total = world.add(torch.stack([weight.double().sum() for weight in now.values()]))
        assert torch.equal(total, 2 * torch.stack([weight.double().sum() for weight in now.values()])), "ranks differ"
        before = now
    leave_world(world)


if __name__ == "__main__":
    main(*sys.argv[1:])
