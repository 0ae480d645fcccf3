"""Two processes equal one, for every quantizer of quantizer_trees.py.

Run as a script this file is one of the two processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quantizer_trees import CONFIGS, DIM, draw_alike, fresh, same_state
from torch import distributed as dist

from tessera.tokenize.quantizers.codebooks.codebook import REVIVE_EVERY
from tessera.tokenize.quantizers.registry import make_quantizer


def shared_steps(name):
    """(latents, mask, number of samples that process 0 has) of each update; process 1 once has nothing but padding."""
    generator = torch.Generator().manual_seed(5)
    for step in range(REVIVE_EVERY + 3):
        x = torch.randn(7, 11, DIM, generator=generator)
        mask = torch.rand(7, 11, generator=generator) < 0.8
        first = 1 + step % 4
        if step == 3:
            mask[first:] = False
        yield x, mask, first


def run_shared(name, part):
    """State after the updates, for one process with all samples (part None) or the first or second of two."""
    torch.manual_seed(0)
    quantizer = fresh(name)
    for x, mask, first in shared_steps(name):
        rows = {None: slice(None), 0: slice(first), 1: slice(first, None)}[part]
        draw_alike(quantizer, rows)
        for piece in (x[rows], x[rows] * 0.5):  # two backward passes, one update
            quantizer(piece, mask[rows])
        quantizer.update()
    return quantizer.state_dict()


def run_entropies(part):
    """The entropy losses of a joint batch of 12 tokens, and what gradient reaches the latents of each process."""
    x = torch.randn(12, DIM, generator=torch.Generator().manual_seed(8))
    rows = {None: slice(None), 0: slice(6), 1: slice(6, None)}[part]
    found = {}
    for name in ("lfq", "bsq", "vq-entropy"):
        torch.manual_seed(0)
        config = CONFIGS[name].model_copy(update={"commitment": 0.0, **({"moments": 0.0} if "vq" in name else {})})
        own = x[rows].clone().requires_grad_()
        loss = make_quantizer(config, DIM)(own).losses["entropy"].mean()
        loss.backward()
        found[name] = (loss.detach(), own.grad)
    return found


def run_as_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    states = {name: run_shared(name, rank) for name in CONFIGS}
    torch.save((states, run_entropies(rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve())]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, cwd=tmp_path) for rank in (0, 1)]
    alone = {name: run_shared(name, None) for name in CONFIGS}
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    (zero, entropies), (one, others) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, state in alone.items():
        assert same_state(zero[name], one[name]), name
        for key, value in state.items():
            # Sums are added in another order.
            torch.testing.assert_close(
                zero[name][key], value, atol=1e-5, rtol=1e-4, msg=lambda m, k=f"{name} {key}": f"{k}: {m}"
            )

    for name, (loss, gradient) in run_entropies(None).items():
        # Trap 5: the share of a code is that in the joint batch, for both. DDP halves the sum of gradients.
        torch.testing.assert_close((entropies[name][0] + others[name][0]) / 2, loss)
        torch.testing.assert_close(torch.cat([entropies[name][1], others[name][1]]) / 2, gradient)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_as_process(int(sys.argv[1]), sys.argv[2])
