"""Training of the aligner: expectation maximization from a flat start.

    flat start    the louder part of each recording is divided evenly among its sounds
    iterations    the probability of each state at each frame, then the Gaussian of each sound from its frames

No model of other recordings and no time of any unit is needed: that the same sounds return in different orders is what
separates them. Source: monophone training of the Montreal Forced Aligner (McAuliffe et al., Interspeech 2017), here
with sums over all paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .cepstra import NUM_FEATURES, with_slopes
from .gaussians import Gaussians, GaussianSums
from .paths import best_paths, occupancies, path_batch
from .unit_graph import SILENCE, UnitGraph

CELLS = 4_000_000
"""Frames times states of a batch: about 100 MB."""
QUIET = 0.25
"""Frames below this part of the range of loudness are silence in the flat start."""


@dataclass(frozen=True)
class Utterance:
    """A recording with its transcript."""

    cepstra: np.ndarray
    """[T, COEFFICIENTS]"""
    graph: UnitGraph


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the features of a corpus, [NUM_FEATURES] each."""

    mean: np.ndarray
    deviation: np.ndarray

    def apply(self, cepstra: np.ndarray) -> np.ndarray:
        """Features [T, NUM_FEATURES] float32 of cepstra [T, COEFFICIENTS]."""
        return ((with_slopes(cepstra) - self.mean) / self.deviation).astype(np.float32)


def measure_scale(utterances: Sequence[Utterance]) -> Scale:
    """The scale of a corpus."""
    count = sum(len(utterance.cepstra) for utterance in utterances)
    total, squares = np.zeros(NUM_FEATURES), np.zeros(NUM_FEATURES)
    for utterance in utterances:
        features = with_slopes(utterance.cepstra).astype(np.float64)
        total += features.sum(0)
        squares += np.square(features).sum(0)
    mean = total / count
    return Scale(mean, np.sqrt(np.maximum(squares / count - mean**2, 0) + 1e-9))


def flat_start(utterances: Sequence[Utterance], scale: Scale, num_sounds: int) -> Gaussians:
    """First Gaussians: quiet frames are silence, the others are divided evenly among the sounds in order."""
    sums = GaussianSums(num_sounds)
    for utterance in utterances:
        loudness = utterance.cepstra[:, 0]
        low, high = np.percentile(loudness, [5, 95])
        loud = loudness > low + QUIET * (high - low)
        sounds = utterance.graph.sounds[utterance.graph.sounds != SILENCE]
        labels = np.full(len(loudness), SILENCE)
        labels[loud] = sounds[np.arange(loud.sum()) * len(sounds) // max(1, int(loud.sum()))]
        sums.add(scale.apply(utterance.cepstra), np.eye(num_sounds, dtype=np.float32)[labels])
    return sums.estimate()


def batches(utterances: Sequence[Utterance]) -> Iterator[list[int]]:
    """Numbers of utterances of similar lengths, so many at a time that a batch has at most CELLS cells."""
    order = sorted(range(len(utterances)), key=lambda number: len(utterances[number].cepstra))
    batch: list[int] = []
    states = 0
    for number in order:
        utterance = utterances[number]
        states = max(states, len(utterance.graph.sounds))
        if batch and (len(batch) + 1) * len(utterance.cepstra) * states > CELLS:
            yield batch
            batch, states = [], len(utterance.graph.sounds)
        batch.append(number)
    if batch:
        yield batch


def reestimate(model: Gaussians, utterances: Sequence[Utterance], scale: Scale) -> Iterator[int | Gaussians]:
    """One iteration; yields the number of utterances after each batch, and the new Gaussians at the end."""
    sums = GaussianSums(len(model.shares))
    for numbers in batches(utterances):
        features = [scale.apply(utterances[number].cepstra) for number in numbers]
        graphs = [utterances[number].graph for number in numbers]
        found = occupancies(path_batch([model.scores(part) for part in features], graphs))
        for row, (part, graph) in enumerate(zip(features, graphs, strict=True)):
            of_sound = np.zeros((len(graph.sounds), len(model.shares)), np.float32)
            of_sound[np.arange(len(graph.sounds)), graph.sounds] = 1
            sums.add(part, found[: len(part), row, : len(graph.sounds)] @ of_sound)
        yield len(numbers)
    yield sums.estimate()


def align(model: Gaussians, utterances: Sequence[Utterance], scale: Scale) -> Iterator[tuple[int, np.ndarray, float]]:
    """Align utterances.

    Returns:
        number, the best path [T], and the score of each: the mean over its sounding frames of the log-probability that
        the frame, taken alone, is the sound that the path has there. It is low if the transcript is not what is said.
    """
    for numbers in batches(utterances):
        graphs = [utterances[number].graph for number in numbers]
        scores = [model.scores(scale.apply(utterances[number].cepstra)) for number in numbers]
        for number, graph, found, path in zip(
            numbers, graphs, scores, best_paths(path_batch(scores, graphs)), strict=True
        ):
            sounds = graph.sounds[path]
            likely = model.posteriors(found)[np.arange(len(path)), sounds]
            yield number, path, float(likely[sounds != SILENCE].mean())
