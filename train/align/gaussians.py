"""The acoustic model: one Gaussian with diagonal covariance per sound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .cepstra import NUM_FEATURES

PRIOR_FRAMES = 20.0
"""Weight of the prior, the distribution of all frames, in frames: sounds that are rare stay near it."""
SMALLEST_VARIANCE = 0.02
"""Of features whose variance over the corpus is 1."""


@dataclass(frozen=True)
class Gaussians:
    """Means and variances by sound, of features with mean 0 and variance 1 over the corpus."""

    means: np.ndarray
    """[sounds, NUM_FEATURES]"""
    variances: np.ndarray
    """[sounds, NUM_FEATURES]"""
    shares: np.ndarray
    """[sounds] fraction of the frames."""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Log-likelihood of frames [T, NUM_FEATURES] for each sound, [T, sounds] float32, up to a constant."""
        inverse = 1 / self.variances
        constant = -0.5 * (np.log(self.variances) + self.means**2 * inverse).sum(1)
        linear, square = (self.means * inverse).T.astype(np.float32), (-0.5 * inverse).T.astype(np.float32)
        return features @ linear + (features * features) @ square + constant.astype(np.float32)

    def posteriors(self, scores: np.ndarray) -> np.ndarray:
        """Log-probability of each sound given the frame alone, from `scores`."""
        joint = scores + np.log(self.shares).astype(np.float32)
        peak = joint.max(1, keepdims=True)
        return joint - peak - np.log(np.exp(joint - peak).sum(1, keepdims=True))


class GaussianSums:
    """Sums over frames from which Gaussians are estimated."""

    def __init__(self, num_sounds: int):
        self.counts = np.zeros(num_sounds)
        self.sums = np.zeros((num_sounds, NUM_FEATURES))
        self.squares = np.zeros((num_sounds, NUM_FEATURES))

    def add(self, features: np.ndarray, weights: np.ndarray) -> None:
        """Add frames [T, NUM_FEATURES] with the probability of each sound, [T, sounds]."""
        self.counts += weights.sum(0)
        self.sums += weights.T @ features
        self.squares += weights.T @ (features * features)

    def estimate(self) -> Gaussians:
        """The Gaussians of the frames added so far."""
        weight = self.counts + PRIOR_FRAMES
        means = self.sums / weight[:, None]
        variances = (self.squares + PRIOR_FRAMES) / weight[:, None] - means**2
        return Gaussians(means, np.maximum(variances, SMALLEST_VARIANCE), weight / weight.sum())
