"""Leaving a group of processes."""

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # its defaults hold the group where it is imported later
from torch.nn.parallel import DistributedDataParallel

from tessera.train.world import World, leave_world


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield weakref.ref(dist.group.WORLD)
    if dist.is_initialized():
        dist.destroy_process_group()


def test_a_model_is_not_the_last_to_hold_the_group(group):
    """It would end the group while holding Python's lock, which a thread that the end waits for may want."""
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    leave_world(World(0, 2, torch.device("cpu")))
    assert not dist.is_initialized()
    del model
    gc.collect()
    assert group() is not None


def test_a_group_of_one_is_kept(group):
    leave_world(World(0, 1, torch.device("cpu")))
    assert dist.is_initialized()
