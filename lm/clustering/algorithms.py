"""Clustering of vectors: k-means, and k-means with clusters of equal size.

The result depends only on the vectors and a seed, and groups are numbered in the order of their first vectors.
Sources: CTF (arXiv:2503.16194) clusters code vectors by k-means; IAR (`balance_k_means.py`) makes the clusters equal in
size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ...tokenize.quantizers.codebooks.nearest import kmeans, nearest_code

MethodName = Literal["kmeans", "balanced"]

STARTS = 4
"""Runs from different starts; the one with the smallest distances is kept."""
ITERATIONS = 50
BALANCED_ITERATIONS = 20


def group_vectors(vectors: Tensor, num_groups: int, method: MethodName = "kmeans", seed: int = 0) -> Tensor:
    """Cluster vectors.

    Args:
        vectors: [V, D] float.
        num_groups: M, 1 to V; no group is empty.
        method: "kmeans", or "balanced": sizes differ by at most one.
    Returns:
        [V] long, the group of each vector, 0 to M - 1.
    Raises:
        ValueError: fewer vectors than groups.
    """
    V = len(vectors)
    if not 1 <= num_groups <= V:
        raise ValueError(f"{V} vectors cannot form {num_groups} clusters; choose 1 to {V}")
    vectors = vectors.detach().to("cpu", torch.float32)
    generator = torch.Generator().manual_seed(seed)
    found = [METHODS[method](vectors, _spread_start(vectors, num_groups, generator)) for _ in range(STARTS)]
    return _in_order(min(found, key=lambda labels: scatter_within(vectors, labels)))


def group_centers(vectors: Tensor, labels: Tensor, num_groups: int) -> Tensor:
    """Means [M, D] of the vectors [V, D] of each group, in their dtype."""
    sums = vectors.new_zeros(num_groups, vectors.shape[1]).index_add_(0, labels, vectors)
    return sums / torch.bincount(labels, minlength=num_groups).clamp(min=1)[:, None].to(vectors.dtype)


def scatter_within(vectors: Tensor, labels: Tensor) -> float:
    """Mean squared distance of vectors [V, D] to the mean of their group, in float64."""
    exact = vectors.double()
    centers = group_centers(exact, labels, int(labels.max()) + 1)
    return float((exact - centers[labels]).square().sum(dim=-1).mean())


def scatter_of_random(vectors: Tensor, labels: Tensor) -> float:
    """Expectation of `scatter_within` over all random groupings with the same sizes.

    The expected scatter of a group of n vectors drawn without replacement around its own mean is (n - 1) S^2, where S^2
    is the variance of all vectors (divided by V - 1).
    """
    V, M = len(vectors), int(labels.max()) + 1
    whole = scatter_within(vectors, torch.zeros_like(labels))
    return whole * (V - M) / max(1, V - 1)


def _kmeans(vectors: Tensor, start: Tensor) -> Tensor:
    rest = torch.ones(len(vectors), dtype=torch.bool)
    rest[start] = False
    centers, _ = kmeans(torch.cat([vectors[start], vectors[rest]]), len(start), ITERATIONS)
    return _fill_empty(vectors, nearest_code(vectors, centers), centers)


def _balanced(vectors: Tensor, start: Tensor) -> Tensor:
    labels = _kmeans(vectors, start)
    best, least = labels, float("inf")
    for _ in range(BALANCED_ITERATIONS):
        labels = _place(vectors, group_centers(vectors, labels, len(start)))
        scatter = scatter_within(vectors, labels)
        if scatter >= least:
            break
        best, least = labels, scatter
    return best


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kmeans": _kmeans, "balanced": _balanced}
"""METHODS[name](vectors [V, D], start [M] indices of vectors) -> groups [V], each of 0 .. M - 1 at least once."""


def _spread_start(vectors: Tensor, num_groups: int, generator: torch.Generator) -> Tensor:
    """Indices [M] of distinct vectors far apart: each is sampled by its squared distance to the previous ones.

    Source: k-means++, Arthur and Vassilvitskii 2007.
    """
    chosen = torch.randint(len(vectors), (1,), generator=generator).tolist()
    free = torch.ones(len(vectors), dtype=torch.bool)
    nearest = torch.full((len(vectors),), torch.inf, dtype=torch.float64)
    while True:
        free[chosen[-1]] = False
        if len(chosen) == num_groups:
            return torch.tensor(chosen)
        nearest = torch.minimum(nearest, (vectors - vectors[chosen[-1]]).double().square().sum(dim=-1))
        weights = torch.where(free, nearest, 0.0)
        if not bool(weights.any()):  # only copies of chosen vectors are left
            weights = free.double()
        reach = weights.cumsum(0)
        target = torch.rand(1, generator=generator, dtype=torch.float64) * reach[-1]
        drawn = int(torch.searchsorted(reach, target, right=True))
        # a target that rounds up to the total would fall after the last free vector
        chosen.append(drawn if drawn < len(vectors) and free[drawn] else int(free.nonzero()[-1]))


def _fill_empty(vectors: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Give each empty group the vector that is furthest from its center, from a group that has others."""
    labels, sizes = labels.clone(), torch.bincount(labels, minlength=len(centers))
    far = (vectors - centers[labels]).double().square().sum(dim=-1)
    for empty in (sizes == 0).nonzero()[:, 0].tolist():
        moved = int(torch.where(sizes[labels] > 1, far, -1.0).argmax())
        sizes[labels[moved]] -= 1
        sizes[empty] += 1
        labels[moved], far[moved] = empty, 0.0
    return labels


def _place(vectors: Tensor, centers: Tensor) -> Tensor:
    """Assign vectors in order of their distance to the nearest center, each to the nearest group with room.

    A group has room for V // M vectors, and V % M of the groups for one more.
    """
    V, M = len(vectors), len(centers)
    vacancies, extra = torch.full((M,), V // M), V % M
    nearest = nearest_code(vectors, centers)
    order = (vectors - centers[nearest]).double().square().sum(dim=-1).argsort(stable=True)
    labels = torch.empty(V, dtype=torch.long)
    closed = torch.zeros(M)
    for rows in order.split(max(1, (1 << 22) // M)):
        distances = torch.cdist(vectors[rows], centers, compute_mode="donot_use_mm_for_euclid_dist")
        for row, distance in zip(rows.tolist(), distances, strict=True):
            group = int((distance + closed).argmin())
            labels[row] = group
            vacancies[group] -= 1
            if vacancies[group] < 0:
                extra -= 1
            if extra == 0:
                closed[vacancies <= 0] = torch.inf
            elif vacancies[group] < 0:
                closed[group] = torch.inf
    return labels


def _in_order(labels: Tensor) -> Tensor:
    """The same groups, numbered by their first vectors."""
    groups = int(labels.max()) + 1
    first = torch.full((groups,), len(labels)).scatter_reduce(0, labels, torch.arange(len(labels)), "amin")
    number = torch.empty(groups, dtype=torch.long)
    number[first.argsort()] = torch.arange(groups)
    return number[labels]
