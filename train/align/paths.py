"""Paths through the states of recordings: the most probable one, and how probable each state is at each frame.

A path begins in the first or second state, ends in one of the last two, and at each frame stays, goes to the next
state, or skips a state of silence:

    frame        0 1 2 3 4 5 6 7          states  _ a _ b _        path  _ a a a b b b _

All functions work on a batch of recordings of different lengths: shorter ones are padded, with scores NEVER for states
that do not exist. The loop is over frames, and a frame is one vector operation over recordings and states.
Source: Rabiner, "A tutorial on hidden Markov models", 1989.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .unit_graph import SILENCE, UnitGraph

NEVER = np.float32(-1e30)


@dataclass(frozen=True)
class PathBatch:
    """The scores of a batch of B recordings, padded to T frames and S states."""

    scores: np.ndarray
    """[T, B, S] float32, log-likelihood of each frame in each state."""
    skip: np.ndarray
    """[B, S] 0 where the state before may be skipped, otherwise NEVER."""
    lengths: np.ndarray
    """[B] frames of each recording."""
    last: np.ndarray
    """[B] last state of each recording."""


def path_batch(scores: Sequence[np.ndarray], graphs: Sequence[UnitGraph]) -> PathBatch:
    """Build a batch from the scores [T, sounds] of each recording."""
    lengths = np.array([len(found) for found in scores])
    sizes = np.array([len(graph.sounds) for graph in graphs])
    padded = np.full((lengths.max(), len(graphs), sizes.max()), NEVER, np.float32)
    skip = np.full(padded.shape[1:], NEVER, np.float32)
    for row, (found, graph) in enumerate(zip(scores, graphs, strict=True)):
        padded[: len(found), row, : sizes[row]] = found[:, graph.sounds]
        skip[row, 2 : sizes[row]][graph.sounds[1:-1] == SILENCE] = 0
    return PathBatch(padded, skip, lengths, sizes - 1)


def best_paths(batch: PathBatch) -> list[np.ndarray]:
    """The most probable path of each recording, [T] state of each frame (Viterbi)."""
    scores = batch.scores
    steps = np.zeros(scores.shape, np.int8)
    best = _start(batch)
    moved, skipped = np.full_like(best, NEVER), np.full_like(best, NEVER)
    paths: list[np.ndarray] = [np.empty(0)] * len(batch.last)
    for frame in range(len(scores)):
        if frame:
            moved[:, 1:] = best[:, :-1]
            skipped[:, 2:] = best[:, :-2] + batch.skip[:, 2:]
            steps[frame] = moved > best
            np.maximum(best, moved, out=best)
            steps[frame][skipped > best] = 2
            np.maximum(best, skipped, out=best)
            best += scores[frame]
        for row in np.flatnonzero(batch.lengths - 1 == frame):
            last = int(batch.last[row])
            state = last if best[row, last] >= best[row, last - 1] else last - 1
            paths[row] = _trace(steps[: frame + 1, row], state)
    return paths


def _trace(steps: np.ndarray, state: int) -> np.ndarray:
    path = np.empty(len(steps), np.int64)
    for frame in range(len(steps) - 1, -1, -1):
        path[frame] = state
        state -= int(steps[frame, state])
    return path


def occupancies(batch: PathBatch) -> np.ndarray:
    """The probability of each state at each frame over all paths, [T, B, S] float32 (forward-backward).

    It is 0 beyond the end of a recording.
    """
    forward, backward = _forward(batch), _backward(batch)
    forward += backward
    peak = forward.max(axis=2, keepdims=True)
    exists = (np.arange(len(forward))[:, None] < batch.lengths)[..., None]
    np.exp(forward - peak, out=forward)
    forward *= exists
    total = forward.sum(axis=2, keepdims=True)
    return np.divide(forward, total, out=forward, where=total > 0)


def _start(batch: PathBatch) -> np.ndarray:
    start = np.full(batch.skip.shape, NEVER, np.float32)
    start[:, :2] = batch.scores[0, :, :2]
    return start


def _forward(batch: PathBatch) -> np.ndarray:
    """[T, B, S] log-probability of all paths up to a frame that are in a state there."""
    found = np.empty_like(batch.scores)
    found[0] = _start(batch)
    moved, skipped = np.full_like(found[0], NEVER), np.full_like(found[0], NEVER)
    for frame in range(1, len(found)):
        before = found[frame - 1]
        moved[:, 1:] = before[:, :-1]
        skipped[:, 2:] = before[:, :-2] + batch.skip[:, 2:]
        found[frame] = _log_sum(before, moved, skipped) + batch.scores[frame]
    return found


def _backward(batch: PathBatch) -> np.ndarray:
    """[T, B, S] log-probability of all paths after a frame from a state on."""
    found = np.full_like(batch.scores, NEVER)
    moved, skipped = np.full_like(found[0], NEVER), np.full_like(found[0], NEVER)
    for frame in range(len(found) - 1, -1, -1):
        if frame + 1 < len(found):
            after = found[frame + 1] + batch.scores[frame + 1]
            moved[:, :-1] = after[:, 1:]
            skipped[:, :-2] = after[:, 2:] + batch.skip[:, 2:]
            found[frame] = _log_sum(after, moved, skipped)
        for row in np.flatnonzero(batch.lengths - 1 == frame):
            found[frame, row] = NEVER
            found[frame, row, batch.last[row] - 1 : batch.last[row] + 1] = 0
    return found


def _log_sum(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """log(exp(a) + exp(b) + exp(c)) without overflow."""
    peak = np.maximum(np.maximum(a, b), c)
    return peak + np.log(np.exp(a - peak) + np.exp(b - peak) + np.exp(c - peak))
