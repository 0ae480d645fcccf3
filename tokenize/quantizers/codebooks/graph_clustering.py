"""Graph clustering by two-dimensional structural entropy, and assignment of new vectors to the clusters.

Let d be the degree of a node (the sum of its edge weights); for a cluster, V the volume (the sum of its nodes'
degrees) and g the cut (the weight of its edges to the outside); and `total` the sum of all degrees:

    H = - sum over clusters  g / total * log2(V / total)  -  sum over nodes  d / total * log2(d / V of its cluster)

H is the number of bits to encode one step of a random walk in two parts: the cluster, if it changes, and the node in
it. It is small if the walk seldom leaves a cluster; minimizing it also determines the number of clusters. With
I = V - g, twice the weight inside a cluster, merging clusters a and b, with edges of total weight w between them,
changes H in closed form:

    total * change = I_a log2(V_ab / V_a) + I_b log2(V_ab / V_b) + 2 w log2(V_ab / total),     V_ab = V_a + V_b

Clusters are found by repeatedly merging the pair that lowers H most, until no merge lowers it. A new vector is a new
node with edges to its nearest nodes: `joining_costs` is the change of H when this singleton joins a cluster.

Source: Li and Pan, Structural Information and Dynamical Complexity of Networks, doi:10.1109/TIT.2016.2555904; for
speech features, with a different merge order: SECodec, arXiv:2501.00018. Here a heap of changes orders all merges.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import log, log2

import torch
from torch import Tensor

from .nearest import nearest_few

FAINTEST = 1e-12
"""Minimum edge weight: a vector far from all others keeps its edges."""
SAME = 1e-9
"""Costs that differ by less than this fraction of the new node's degree count as equal, so rounding decides nothing."""


@dataclass(frozen=True)
class Graph:
    """Undirected graph; every edge is listed once."""

    num_nodes: int
    first: Tensor
    """[E] long, the lower node index of each edge."""
    second: Tensor
    """[E] long, the higher node index of each edge."""
    weight: Tensor
    """[E] float64, positive."""

    def volumes(self, clusters: Tensor) -> tuple[Tensor, Tensor]:
        """Volume V and I = V - g of each cluster, from the cluster index of each node [n] long; [V] float64 each."""
        V, ends = int(clusters.max()) + 1, torch.stack([clusters[self.first], clusters[self.second]])
        volume = self.weight.new_zeros(V)
        for end in ends:
            volume.index_add_(0, end, self.weight)
        within = torch.where(ends[0] == ends[1], 2 * self.weight, 0.0)
        return volume, self.weight.new_zeros(V).index_add_(0, ends[0], within)


def gaussian(squared: Tensor, width: Tensor) -> Tensor:
    """exp(-|x - y|^2 / width)."""
    return (-squared / width).exp().clamp_min(FAINTEST)


def cosine(squared: Tensor, width: Tensor) -> Tensor:
    """x . y of unit vectors, computed from their squared distance; negative values are clamped to FAINTEST."""
    return (1 - squared / 2).clamp_min(FAINTEST)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"gaussian": gaussian, "cosine": cosine}
"""Similarity functions: squared distances -> edge weights."""


def neighbour_graph(x: Tensor, neighbours: int, similarity: str) -> tuple[Graph, Tensor]:
    """Nearest-neighbor graph of the rows of x [n, D], all distinct, n > neighbours: i and j are connected if either is
    among the nearest neighbors of the other.

    Returns:
        the graph, and the `width` of its similarities: the mean squared distance between a node and a neighbor.
    """
    numbers, squared = nearest_few(x, x, neighbours + 1)
    own = torch.arange(len(x), device=x.device)[:, None]
    others = numbers != own
    width = squared[others].mean()
    ends = torch.stack([own.expand_as(numbers)[others], numbers[others]])
    low, high = ends.amin(dim=0), ends.amax(dim=0)
    keys, where = torch.unique(low * len(x) + high, return_inverse=True)
    weight = squared.new_zeros(len(keys)).index_copy_(0, where, SIMILARITIES[similarity](squared[others], width))
    return Graph(len(x), keys // len(x), keys % len(x), weight), width


def merge_change(inside_a: float, volume_a: float, inside_b: float, volume_b: float, cut: float, total: float) -> float:
    """`total` times the change of H when two clusters merge; see the formula in the module docstring."""
    both = volume_a + volume_b
    return inside_a * log2(both / volume_a) + inside_b * log2(both / volume_b) + 2 * cut * log2(both / total)


def joining_costs(clusters: Tensor, weight: Tensor, inside: Tensor, volume: Tensor) -> Tensor:
    """Change of H, times the sum of all degrees, when a new singleton node joins each cluster, [N, V].

    The edges of the new node add to the volume of the clusters they lead to, whichever it joins; its own I is 0.

    Args:
        clusters: [N, k] long, clusters of the nodes at the other end of its edges.
        weight: [N, k] float64, weights of these edges.
        inside, volume: I and V of the clusters without the new node, [V] float64.
    """
    degree = weight.sum(dim=-1, keepdim=True)
    cut = (weight[:, None] * (clusters[:, :, None] == clusters[:, None])).sum(dim=-1)  # to the cluster of each edge
    apart = inside * torch.log1p(degree / volume)
    grown = volume[clusters] + cut
    joined = torch.log1p(degree / grown)
    whole = ((grown + degree) / (volume.sum() + 2 * degree)).log()
    return apart.scatter(1, clusters, inside[clusters] * joined + 2 * cut * whole) / log(2)


def least_cost(costs: Tensor, degree: Tensor) -> Tensor:
    """Index of the least of `costs` [N, V] -> [N]; among costs equal up to rounding, the lowest index."""
    return (costs <= costs.amin(dim=-1, keepdim=True) + SAME * degree[:, None]).to(torch.uint8).argmax(dim=-1)


def merge_clusters(graph: Graph, most: int) -> list[int]:
    """Cluster index of each node [n], numbered from 0 in the order of the clusters' lowest nodes.

    If more than `most` clusters remain when no merge lowers H, the merges that raise it least follow, between connected
    clusters as long as there are any. Lower indices win ties.
    """
    parts = _Clusters(graph)
    while parts.merge_best(must=len(parts.alive) > most):
        pass
    number = {root: place for place, root in enumerate(sorted(parts.alive))}
    return [number[parts.root(node)] for node in range(graph.num_nodes)]


class _Clusters:
    """Current clusters, each identified by its lowest node, and a heap of the changes of H by merging them."""

    def __init__(self, graph: Graph):
        n = graph.num_nodes
        self.around: list[dict[int, float]] = [{} for _ in range(n)]
        """Weight of the edges to each adjacent cluster."""
        edges = zip(graph.first.tolist(), graph.second.tolist(), graph.weight.tolist(), strict=True)
        for a, b, weight in edges:
            self.around[a][b] = self.around[b][a] = weight
        self.volume = [sum(neighbours.values()) for neighbours in self.around]
        self.inside = [0.0] * n
        self.total = sum(self.volume)
        self.parent = list(range(n))
        self.alive = set(range(n))
        self.age = [0] * n
        """Merges of each cluster so far; heap entries with an older age are stale."""
        self.heap: list[tuple[float, int, int, int, int]] = []
        for a in range(n):
            for b in self.around[a]:
                if a < b:
                    self._offer(a, b)

    def root(self, node: int) -> int:
        """The cluster of a node."""
        while self.parent[node] != node:
            self.parent[node] = node = self.parent[self.parent[node]]
        return node

    def merge_best(self, must: bool) -> bool:
        """Merge the pair that lowers H most; with `must`, if there is none, the pair that raises it least."""
        while self.heap:
            change, a, b, *ages = self.heap[0]
            if ages == [self.age[a], self.age[b]]:
                if change < 0 or must:
                    self._merge(a, b)
                    return True
                return False
            heapq.heappop(self.heap)
        if must and len(self.alive) > 1:  # only disconnected clusters are left
            for a, b in combinations(sorted(self.alive), 2):
                self.around[a][b] = self.around[b][a] = 0.0
                self._offer(a, b)
            return self.merge_best(must)
        return False

    def _offer(self, a: int, b: int) -> None:
        change = merge_change(
            self.inside[a], self.volume[a], self.inside[b], self.volume[b], self.around[a][b], self.total
        )
        heapq.heappush(self.heap, (change, a, b, self.age[a], self.age[b]))

    def _merge(self, a: int, b: int) -> None:
        """Merge b into a, a < b."""
        self.inside[a] += self.inside[b] + 2 * self.around[a].pop(b)
        self.volume[a] += self.volume[b]
        for c, weight in self.around[b].items():
            if c != a:
                del self.around[c][b]
                self.around[a][c] = self.around[c][a] = self.around[a].get(c, 0.0) + weight
        self.around[b] = {}
        self.parent[b] = a
        self.alive.remove(b)
        self.age[a] += 1
        self.age[b] = -1
        for c in self.around[a]:
            self._offer(min(a, c), max(a, c))
