"""Leaving a group of processes. Each case is a process of its own: DeepSpeed's tests keep a group in this one."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # its defaults hold the group where it is imported later
from torch.nn.parallel import DistributedDataParallel

from tessera.train.distributed.process_group import ProcessGroup, leave_world


def a_model_is_not_the_last_to_hold_the_group():
    """It would end the group while holding Python's lock, which a thread that the end waits for may want."""
    group = weakref.ref(dist.group.WORLD)
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    leave_world(ProcessGroup(0, 2, torch.device("cpu")))
    assert not dist.is_initialized()
    del model
    gc.collect()
    assert group() is not None


def a_group_of_one_is_kept():
    leave_world(ProcessGroup(0, 1, torch.device("cpu")))
    assert dist.is_initialized()


CASES = {case.__name__: case for case in (a_model_is_not_the_last_to_hold_the_group, a_group_of_one_is_kept)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_leaving(case, tmp_path):
    command = [sys.executable, str(Path(__file__).resolve()), case]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    CASES[sys.argv[1]]()
