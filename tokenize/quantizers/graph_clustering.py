"""Clusters by two-dimensional structural entropy: of a graph of similar vectors, and of one vector more.

With the degree d of a node (the sum of its edges' weights), and for a cluster the volume V (the sum of its nodes'
degrees), the cut g (the weight of its edges to the outside) and `total` (the sum of all degrees):

    H = - sum over clusters  g / total * log2(V / total)  -  sum over nodes  d / total * log2(d / V of its cluster)

These are the bits of a step of a random walk, told in two parts: which cluster, where the walk changes it, and which
node in it. A cut into clusters that a walk seldom leaves makes it small, and so decides how many clusters there are.
With I = V - g, which is twice the weight inside, the change when clusters a and b, with edges of weight w between them,
become one is in closed form

    total * change = I_a log2(V_ab / V_a) + I_b log2(V_ab / V_b) + 2 w log2(V_ab / total),     V_ab = V_a + V_b

Clusters are found by merging the pair that lowers H most until no merge does. A new vector is a new node with edges to
its nearest ones: `joining_costs` is the change when it, alone at first, joins a cluster.

Source: Li and Pan, Structural Information and Dynamical Complexity of Networks, doi:10.1109/TIT.2016.2555904; for
features of speech, merged in an order of its own: SECodec, arXiv:2501.00018. Here a heap of changes merges the whole.
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
"""Weight of an edge at least: however far a vector is from all others, its neighbours are those that it has."""
SAME = 1e-9
"""Costs that are so near each other, in shares of the new node's degree, are equal: rounding decides nothing."""


@dataclass(frozen=True)
class Graph:
    """Undirected, with every edge once."""

    num_nodes: int
    first: Tensor
    """[E] long, the lower node of an edge."""
    second: Tensor
    """[E] long, the higher one."""
    weight: Tensor
    """[E] float64, above 0."""

    def volumes(self, clusters: Tensor) -> tuple[Tensor, Tensor]:
        """V and I = V - g of clusters, given as the number of each node's [n] long; [V] float64 each."""
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
    """x . y, which squared distances tell where vectors have length 1; 0 where that is negative."""
    return (1 - squared / 2).clamp_min(FAINTEST)


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"gaussian": gaussian, "cosine": cosine}
"""Weights of edges from squared distances."""


def neighbour_graph(x: Tensor, neighbours: int, similarity: str) -> tuple[Graph, Tensor]:
    """Rows of x [n, D], all different, n > neighbours, as nodes: each has edges to its nearest, and to those it is
    nearest to.

    Returns:
        the graph, and the `width` of its similarities: the mean squared distance of a node and a neighbour.
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
    """`total` times the change of H when two clusters become one; see the head of this file."""
    both = volume_a + volume_b
    return inside_a * log2(both / volume_a) + inside_b * log2(both / volume_b) + 2 * cut * log2(both / total)


def joining_costs(clusters: Tensor, weight: Tensor, inside: Tensor, volume: Tensor) -> Tensor:
    """The change of H, times the sum of all degrees, when a new node that was alone joins each cluster, [N, V].

    Its edges add to the volume of the clusters that they lead to, whichever it joins; it has nothing inside.

    Args:
        clusters: [N, k] long, those of the nodes that its edges lead to.
        weight: [N, k] float64, of these edges.
        inside, volume: I and V of the clusters without it, [V] float64.
    """
    degree = weight.sum(dim=-1, keepdim=True)
    cut = (weight[:, None] * (clusters[:, :, None] == clusters[:, None])).sum(dim=-1)  # to the cluster of each edge
    apart = inside * torch.log1p(degree / volume)
    grown = volume[clusters] + cut
    joined = torch.log1p(degree / grown)
    whole = ((grown + degree) / (volume.sum() + 2 * degree)).log()
    return apart.scatter(1, clusters, inside[clusters] * joined + 2 * cut * whole) / log(2)


def least_cost(costs: Tensor, degree: Tensor) -> Tensor:
    """The number of the least of `costs` [N, V], the lowest one of those that rounding cannot tell from it, [N]."""
    return (costs <= costs.amin(dim=-1, keepdim=True) + SAME * degree[:, None]).to(torch.uint8).argmax(dim=-1)


def merge_clusters(graph: Graph, most: int) -> list[int]:
    """Clusters of the nodes [n], numbered from 0 in the order of their lowest nodes: see the head of this file.

    Where more than `most` are left when no merge lowers H, merges that raise it least follow: of clusters with edges
    between them, as long as there are such. The lower numbers go first in a tie.
    """
    parts = _Clusters(graph)
    while parts.merge_best(must=len(parts.alive) > most):
        pass
    number = {root: place for place, root in enumerate(sorted(parts.alive))}
    return [number[parts.root(node)] for node in range(graph.num_nodes)]


class _Clusters:
    """Clusters under way, each named by its lowest node, and a heap of what their merges would change."""

    def __init__(self, graph: Graph):
        n = graph.num_nodes
        self.around: list[dict[int, float]] = [{} for _ in range(n)]
        """Weight of the edges to each neighbouring cluster."""
        edges = zip(graph.first.tolist(), graph.second.tolist(), graph.weight.tolist(), strict=True)
        for a, b, weight in edges:
            self.around[a][b] = self.around[b][a] = weight
        self.volume = [sum(neighbours.values()) for neighbours in self.around]
        self.inside = [0.0] * n
        self.total = sum(self.volume)
        self.parent = list(range(n))
        self.alive = set(range(n))
        self.age = [0] * n
        """Merges so far; entries of the heap that were made before the last one no longer count."""
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
        """Merge the pair that lowers H most; if none does, `must` merges the one that raises it least."""
        while self.heap:
            change, a, b, *ages = self.heap[0]
            if ages == [self.age[a], self.age[b]]:
                if change < 0 or must:
                    self._merge(a, b)
                    return True
                return False
            heapq.heappop(self.heap)
        if must and len(self.alive) > 1:  # parts without edges between them
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
        """Put b into a, a < b."""
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
