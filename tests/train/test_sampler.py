"""The order of items: a permutation each epoch, the same whatever the world size, a pure function of (seed, step)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.configs.schema import ConfigError
from tessera.train.common.batch_sampler import Sampler, check_batch, micro_batches, mix


def make_sampler(num_items: int, batch: int, seed: int = 0, pool: int = 4) -> Sampler:
    return Sampler(np.random.default_rng(num_items).integers(1, 50, num_items), batch, seed, pool)


@settings(max_examples=100, deadline=None)
@given(num_items=st.integers(1, 300), batch=st.integers(1, 40), seed=st.integers(0, 2**40), pool=st.integers(1, 8))
def test_every_epoch_of_the_stream_is_a_permutation(num_items, batch, seed, pool):
    sampler = make_sampler(num_items, batch, seed, pool)
    for epoch in range(3):
        assert sorted(sampler.stream(epoch * num_items, num_items)) == list(range(num_items))
    pools = 3
    seen = np.bincount(np.concatenate([sampler.batch(step) for step in range(pools * pool)]), minlength=num_items)
    assert seen.sum() == pools * pool * batch
    assert seen.max() - seen.min() <= 1


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    num_items=st.integers(1, 300),
    micro=st.integers(1, 5),
    micros=st.sampled_from([12, 24]),
    steps=st.lists(st.integers(0, 200), min_size=1, max_size=6),
    world=st.sampled_from([1, 2, 3, 4, 6]),
)
def test_world_size_and_history_change_nothing(num_items, micro, micros, steps, world):
    """The union over ranks equals the batch of one process, and jumping to a step equals walking there."""
    batch = micro * micros
    walked, jumped = make_sampler(num_items, batch), make_sampler(num_items, batch)
    whole = [walked.batch(step) for step in range(max(steps) + 1)]
    for step in steps:
        items = jumped.batch(step)
        np.testing.assert_array_equal(items, whole[step])
        found = {}
        for rank in range(world):
            found.update(micro_batches(items, micro, rank, world))
        assert sorted(found) == list(range(micros))
        np.testing.assert_array_equal(np.concatenate([found[number] for number in range(micros)]), items)


def test_batches_hold_similar_lengths():
    sampler = make_sampler(1000, 10, pool=16)
    spread = [np.ptp(sampler.lengths[sampler.batch(step)]) for step in range(32)]
    assert np.mean(spread) < 8  # 49 possible lengths over 16 batches; unsorted batches spread over about 40
    lengths = sampler.lengths[sampler.batch(0)]
    assert (np.diff(lengths) >= 0).all()


def test_seed_changes_the_order():
    assert not np.array_equal(make_sampler(100, 10, seed=0).batch(0), make_sampler(100, 10, seed=1).batch(0))
    assert not np.array_equal(make_sampler(100, 10).stream(0, 100), make_sampler(100, 10).stream(100, 100))


def test_the_order_is_the_one_it_has_always_been():
    """Golden: a change here would make every run resume on other data."""
    sampler = Sampler(np.array([3, 1, 2, 5, 4, 9, 8]), batch=2, seed=7, pool_batches=2)
    assert [sampler.batch(step).tolist() for step in range(4)] == [[3, 5], [1, 0], [2, 4], [4, 6]]
    assert mix(1, 2, 3) == 3851293329796251419


def test_indivisible_batch_says_what_to_do():
    with pytest.raises(
        ConfigError,
        match="10 items cannot be divided among 4 processes in micro-batches of 2; make train.batch a multiple of 8",
    ):
        check_batch(10, None, 4)
    with pytest.raises(ConfigError, match="a multiple of 6"):
        check_batch(8, 3, 2)
    assert check_batch(8, None, 2) == 4
    assert check_batch(8, 2, 2) == 2
