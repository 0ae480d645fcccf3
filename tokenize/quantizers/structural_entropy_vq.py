"""Structural entropy quantizer: codes are clusters of a graph of latents, and each latent is assigned to one of them.

    fit      vectors -> nearest-neighbor graph -> clusters of minimal 2-D structural entropy -> codes are their means
    search   a latent -> edges to its nearest nodes in that graph -> the cluster it joins with the least entropy

The number of codes V is therefore found by the fit, and the nearest mean is not always the code. The graph is stored
with the codes. The entropy, its formulas and the clustering are in graph_clustering.py.

Source: SECodec, arXiv:2501.00018: the graph, the clustering and the assignment by the same entropy. Its formulas were
not available, so these choices are ours: edges to a fixed number of neighbors, weights that decay with distance (or the
cosine), the order of merges, adding a latent as a new node, an upper bound on V, and building the graph from a sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from ...configs.schema import Config, ConfigError
from .codebooks.graph_clustering import SIMILARITIES, joining_costs, least_cost, merge_clusters, neighbour_graph
from .codebooks.nearest import SEARCH_ELEMENTS, distinct, exact_dtype, first_by_priority, nearest_few
from .codebooks.vector_file import VectorFile, read_vectors
from .kmeans_vq import FittedQuantizer


class StructuralConfig(Config):
    """Clusters that are fitted once and then fixed."""

    kind: Literal["structural"] = "structural"
    size: PositiveInt
    """Maximum number of codes; the fit finds the actual number, V."""
    nodes: PositiveInt = 4096
    """Maximum number of graph nodes, a random sample. More nodes give more codes; each latent is compared with all."""
    neighbours: PositiveInt = 8
    """Number of nearest nodes that a node or a latent has edges to. More give fewer codes."""
    similarity: Literal["gaussian", "cosine"] = "gaussian"
    """Edge weights. gaussian: exp(-d^2 / w), where w is the mean squared distance d^2 of neighbors. cosine: the cosine
    of the angle, with neighbors chosen by angle."""
    file: VectorFile | None = None
    """File with vectors [any, D] to fit to; null: `fit` is called with them."""
    commitment: NonNegativeFloat = 0.0
    """Weight of the loss that pulls latents towards their code vectors, for a trainable encoder."""


class StructuralQuantizer(FittedQuantizer):
    """Assigns latents to clusters of a graph by structural entropy. Q = 1."""

    nodes: Tensor
    clusters: Tensor
    volume: Tensor
    inside: Tensor
    width: Tensor
    num_nodes: Tensor
    num_codes: Tensor

    def __init__(
        self,
        config: StructuralConfig,
        dim: int,
        depth: int = 0,
        where: str = "quantizer",
        read_files: bool = True,
    ):
        super().__init__(dim, [config.size])
        if config.size > config.nodes:
            raise ConfigError(
                f"{where}.size: {config.size} codes cannot be formed from {config.nodes} nodes; raise nodes"
            )
        self.config = config
        # Allocated at maximum size, so that a saved state always fits.
        self.register_buffer("nodes", torch.zeros(config.nodes, dim))
        self.register_buffer("clusters", torch.zeros(config.nodes, dtype=torch.long))
        self.register_buffer("centres", torch.zeros(config.size, dim))
        self.register_buffer("volume", torch.zeros(config.size))
        self.register_buffer("inside", torch.zeros(config.size))
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("num_nodes", torch.tensor(0))
        self.register_buffer("num_codes", torch.tensor(0))
        if config.file is not None and read_files:
            try:
                self.fit(read_vectors(config.file, None, dim, f"{where}.file"))
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"{where}.file: {config.file.path}: {error}") from None

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """(V,); before the fit, the maximum number of codes."""
        return (int(self.num_codes) or self.config.size,)

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, 1]. Raises ValueError before the fit."""
        V, n = int(self.num_codes), int(self.num_nodes)
        if not V:
            raise ValueError("structural has no codes yet; call fit(features) first, or name a file in the config")
        rows = self._keys(x.flatten(0, 1))
        nodes, clusters = self._keys(self.nodes[:n]), self.clusters[:n]
        inside, volume = (numbers[:V].to(exact_dtype(x)) for numbers in (self.inside, self.volume))
        weigh = SIMILARITIES[self.config.similarity]
        codes = [clusters[:0]]
        k = self.config.neighbours
        for part in rows.split(max(1, SEARCH_ELEMENTS // max(V, k * k))):
            near, squared = nearest_few(part, nodes, k)
            weight = weigh(squared, self.width)
            costs = joining_costs(clusters[near], weight, inside, volume)
            codes.append(least_cost(costs, weight.sum(dim=-1)))
        return torch.cat(codes).view(*x.shape[:2], 1)

    def vectors(self) -> Tensor:
        """[1, V, D]."""
        return self.centres[None, : self.cardinalities[0]]

    def fit_parts(self, x: Tensor) -> bool:
        """Fit the clusters to a sample of [B, M, D] that does not depend on the order of the vectors.

        Raises:
            ValueError: too few distinct vectors, or non-finite values.
        """
        rows, few = x.flatten(0, 1).cpu(), self.config.neighbours + 1  # on the CPU: sums must not depend on the device
        if not bool(rows.isfinite().all()):
            raise ValueError("the vectors to fit hold NaN or infinite numbers")
        rows = distinct(first_by_priority(rows, 0, len(rows)))[: self.config.nodes]
        if len(rows) < few:
            raise ValueError(
                f"found {len(rows)} different vectors (nodes: {self.config.nodes}) to fit, but {few - 1} neighbours "
                f"need {few}; give more, or lower neighbours"
            )
        graph, width = neighbour_graph(self._keys(rows), self.config.neighbours, self.config.similarity)
        clusters = torch.tensor(merge_clusters(graph, self.config.size))
        volume, inside = graph.volumes(clusters)
        sums = torch.zeros(len(volume), self.dim, dtype=torch.float64).index_add_(0, clusters, rows.double())
        for buffer, found in (
            (self.nodes, rows),
            (self.clusters, clusters),
            (self.centres, sums / torch.bincount(clusters)[:, None]),
            (self.volume, volume),
            (self.inside, inside),
        ):
            buffer.zero_()[: len(found)] = found.to(buffer)
        self.width.copy_(width)
        self.num_nodes.fill_(len(rows))
        self.num_codes.fill_(len(volume))
        return True

    def _keys(self, x: Tensor) -> Tensor:
        """Vectors [n, D] in the comparison space."""
        return F.normalize(x, dim=-1) if self.config.similarity == "cosine" else x
