"""Packed rows: every item once an epoch, the same whatever the world size and the history, and as full as best fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.configs.schema import ConfigError
from tessera.train.common.batch_sampler import micro_batches
from tessera.train.lm.sequence_packing import BestFitConfig, PackedSampler, best_fit

sizes = st.lists(st.integers(1, 20), min_size=1, max_size=80)


def slow_best_fit(lengths, room):
    rows = []
    for size in lengths:
        left = [room - sum(row) - size for row in rows]
        fitting = [x for x in left if x >= 0]
        if fitting:
            rows[left.index(min(fitting))].append(size)
        else:
            rows.append([size])
    return rows


@settings(max_examples=100, deadline=None)
@given(lengths=sizes, room=st.integers(20, 50))
def test_best_fit_equals_the_obvious_one(lengths, room):
    row_of = best_fit(lengths, room)
    found = [[size for size, row in zip(lengths, row_of, strict=True) if row == n] for n in range(max(row_of) + 1)]
    # Of rows with equal room either may be taken: what is filled is the same.
    assert sorted(map(sum, found)) == sorted(map(sum, slow_best_fit(lengths, room)))
    assert max(map(sum, found)) <= room


@settings(max_examples=50, deadline=None)
@given(lengths=sizes, seed=st.integers(0, 2**40), room=st.integers(20, 50))
def test_every_epoch_holds_every_item_once(lengths, seed, room):
    sampler = PackedSampler(lengths, 3, seed, BestFitConfig(steps=room))
    for epoch in range(3):
        rows = sampler.epoch_rows(epoch)
        assert len(rows) == sampler.num_rows
        assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
        assert all(sum(lengths[item] for item in row) <= room for row in rows)
    stream = [row.tolist() for step in range(4) for row in sampler.batch(step)]
    expected = [row.tolist() for epoch in range(12) for row in sampler.epoch_rows(epoch)]
    assert stream == expected[:12]


@settings(max_examples=30, deadline=None)
@given(
    lengths=sizes,
    micro=st.integers(1, 3),
    steps=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    world=st.sampled_from([1, 2, 3, 4, 6]),
)
def test_world_size_and_history_change_nothing(lengths, micro, steps, world):
    def make():
        return PackedSampler(lengths, micro * 12, 5, BestFitConfig(steps=24))

    walked, jumped = make(), make()
    whole = [[row.tolist() for row in walked.batch(step)] for step in range(max(steps) + 1)]
    for step in steps:
        bins = jumped.batch(step)
        assert [row.tolist() for row in bins] == whole[step]
        found = {}
        for rank in range(world):
            found.update(micro_batches(bins, micro, rank, world))
        assert [row.tolist() for number in range(12) for row in found[number]] == whole[step]


def test_seed_and_epoch_change_who_shares_a_row():
    lengths = np.random.default_rng(0).integers(1, 30, 200)
    one, other = (PackedSampler(lengths, 4, seed, BestFitConfig(steps=64)) for seed in (0, 1))
    as_sets = [
        {frozenset(row.tolist()) for row in rows}
        for rows in (one.epoch_rows(0), one.epoch_rows(1), other.epoch_rows(0))
    ]
    for i, j in ((0, 1), (0, 2)):
        assert len(as_sets[i] & as_sets[j]) < len(as_sets[i]) / 4
    filled = lengths.sum() / (64 * one.num_rows)
    assert filled > 0.95


def test_an_item_longer_than_a_row_is_refused():
    with pytest.raises(
        ConfigError, match=r"data.packing.steps: the longest item takes 9 steps, more than the 8 of a row"
    ):
        PackedSampler([3, 9], 1, 0, BestFitConfig(steps=8))
