"""Paths of the aligner against the enumeration of all of them."""

import itertools

import numpy as np
import pytest

from tessera.train.align.paths import best_paths, occupancies, path_batch
from tessera.train.align.unit_graph import SoundTable, UnitGraph, unit_graph, unit_times


def slow_paths(graph: UnitGraph, num_frames: int) -> list[tuple[int, ...]]:
    """Every path: not descending, all sounding states visited, silence possibly left out."""
    states = range(len(graph.sounds))
    sounding = {int(state) for state in states if graph.sounds[state] != 0}
    every = itertools.combinations_with_replacement(states, num_frames)
    return [path for path in every if sounding <= set(path)]


GRAPHS = [
    (["|", "a", "|"], 5),
    (["|", "a", "b", "|"], 5),
    (["|", "a", "|", "b", ",", "|", "a", ".", "|"], 7),
    (["|", "ˈa", "|", "a", "|"], 2),
]


@pytest.mark.parametrize("seed", range(5))
def test_paths_equal_the_enumeration(seed):
    generator = np.random.default_rng(seed)
    table = SoundTable(units for units, _ in GRAPHS)
    graphs = [unit_graph(units, table) for units, _ in GRAPHS]
    scores = [generator.normal(size=(frames, len(table))).astype(np.float32) * 3 for _, frames in GRAPHS]
    batch = path_batch(scores, graphs)
    found, likely = best_paths(batch), occupancies(batch)
    for row, (graph, score, (_, frames)) in enumerate(zip(graphs, scores, GRAPHS, strict=True)):
        paths = slow_paths(graph, frames)
        values = np.array([sum(score[t, graph.sounds[s]] for t, s in enumerate(path)) for path in paths])
        assert tuple(found[row]) == paths[int(values.argmax())]
        weights = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
        expected = np.zeros((frames, len(graph.sounds)))
        for path, weight in zip(paths, weights, strict=True):
            expected[np.arange(frames), path] += weight
        assert np.allclose(likely[:frames, row, : len(graph.sounds)], expected, atol=1e-5)
        assert not likely[frames:, row].any() and not likely[:, row, len(graph.sounds) :].any()


def test_states_of_units():
    units = ["|", "ˈO", "n", ",", "|", "O", ".", "|"]
    table = SoundTable([units])
    assert table.names == ["", "O", "n"]
    graph = unit_graph(units, table)
    assert graph.sounds.tolist() == [0, 1, 2, 0, 1, 0] and graph.units.tolist() == [0, 1, 2, 3, 5, 7]
    assert graph.fewest_frames == 3
    timed = unit_times(np.array([1, 1, 2, 3, 4, 5, 5]), graph, units, 0.065, 100)
    assert timed.units == tuple(units)
    assert timed.boundaries == pytest.approx((0, 0, 0.02, 0.03, 0.04, 0.04, 0.05, 0.05, 0.065))
