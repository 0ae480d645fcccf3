"""Coarse labels: the codes of a tokenizer, clustered by similarity.

A language model predicts the labels, and a refiner (lm/models/masked.py) then predicts the codes. Each codebook has its
own clusters.

    config.json            the tokenizer's TokenSpec, method, seed, and a fingerprint of all that
    clusters.safetensors   labels [K, V] int32: the cluster of each code, -1 where a codebook has fewer codes

Source: CTF, arXiv:2503.16194.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from ...configs.files import check_format, read_safetensors, read_sealed_json, write_safetensors, write_sealed_json
from ...configs.recognize import describe_wrong, folder_kind
from ...configs.schema import Config, check_config
from ...tokenize.base import Encoded
from ...tokenize.spec import TokenSpec
from ...tokenize.tokenizer import Tokenizer
from .algorithms import MethodName, group_centers, group_vectors, scatter_of_random, scatter_within

MIN_IMPROVEMENT = 0.1
"""Clusters that reduce the squared distance of random ones by less than this share are uninformative."""


class ClusteringFile(Config):
    """config.json of a clustering folder."""

    format: Literal["tessera-clusters"] = "tessera-clusters"
    version: Literal[1] = 1
    tokenizer: TokenSpec
    """The tokenizer of the codes."""
    clusters: tuple[PositiveInt, ...]
    """Number of clusters of each codebook."""
    method: MethodName
    seed: NonNegativeInt
    fingerprint: str
    """SHA-256 of the tokenizer's fingerprint and the labels; also the fingerprint of the coarse TokenSpec."""


class Clustering:
    """The cluster of each code.

    Args:
        tokenizer: TokenSpec of the codes.
        labels: [K, V] long, V the largest cardinality, -1 where a codebook has fewer codes; a codebook uses each number
            from 0 to its largest.
    Raises:
        ValueError: the labels do not fit the codes.
    """

    def __init__(self, tokenizer: TokenSpec, labels: Tensor, method: MethodName = "kmeans", seed: int = 0):
        sizes = tokenizer.cardinalities
        if labels.dtype != torch.long or tuple(labels.shape) != (len(sizes), max(sizes)):
            raise ValueError(f"labels must be long {[len(sizes), max(sizes)]}, found {labels.dtype} {[*labels.shape]}")
        for k, size in enumerate(sizes):
            used = labels[k, :size].unique()
            if not torch.equal(used, torch.arange(len(used))) or bool((labels[k, size:] != -1).any()):
                raise ValueError(
                    f"codebook {k}: its {size} labels must use every cluster from 0 to the largest, the "
                    "padding after them must be -1"
                )
        self.tokenizer, self.labels, self.seed = tokenizer, labels, seed
        self.method: MethodName = method
        clusters = tuple(int(row.max()) + 1 for row in labels)
        digest = hashlib.sha256(tokenizer.fingerprint.encode())
        digest.update(labels.to(torch.int32).numpy().astype("<i4").tobytes())
        self.spec = tokenizer.model_copy(
            update={
                "name": f"{tokenizer.name}-coarse",
                "cardinalities": clusters,
                "fingerprint": digest.hexdigest(),
            }
        )
        """TokenSpec of the coarse labels."""

    @property
    def clusters(self) -> tuple[int, ...]:
        """Number of clusters of each codebook."""
        return self.spec.cardinalities

    def check(self, tokenizer: TokenSpec) -> None:
        """Raise ValueError if the clusters are of another tokenizer's codes."""
        if self.tokenizer.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"the clusters belong to tokenizer '{self.tokenizer.name}' ({self.tokenizer.fingerprint[:12]}), but "
                f"'{tokenizer.name}' ({tokenizer.fingerprint[:12]}) is in use here; rebuild them with: tessera coarse"
            )

    def sizes(self, codebook: int) -> Tensor:
        """[M] long: number of codes in each cluster."""
        return torch.bincount(self.labels[codebook, : self.tokenizer.cardinalities[codebook]])

    def coarse(self, codes: Tensor) -> Tensor:
        """The clusters of codes: [B, K, T] long to the same shape. ValueError: wrong number of codebooks."""
        if codes.shape[1] != len(self.labels):
            raise ValueError(f"codes have {codes.shape[1]} codebooks but the clusters have {len(self.labels)}")
        labels = self.labels.to(codes.device)
        return torch.stack([row[book] for row, book in zip(labels, codes.unbind(1), strict=True)], dim=1)

    def centers(self, vectors: Tensor) -> Tensor:
        """Means of the code vectors [K, V, D] per cluster: [K, M, D], zero-padded to the largest number M."""
        found = vectors.new_zeros(len(self.labels), max(self.clusters), vectors.shape[-1])
        for k, size in enumerate(self.tokenizer.cardinalities):
            labels = self.labels[k, :size].to(vectors.device)
            found[k, : self.clusters[k]] = group_centers(vectors[k, :size], labels, self.clusters[k])
        return found

    def medoids(self, vectors: Tensor) -> Tensor:
        """The code nearest to the center of each cluster: [K, M] long, zero-padded; vectors [K, V, D]."""
        centers = self.centers(vectors.cpu())
        found = torch.zeros(len(self.labels), max(self.clusters), dtype=torch.long)
        for k, size in enumerate(self.tokenizer.cardinalities):
            labels = self.labels[k, :size]
            distances = (vectors[k, :size].cpu() - centers[k, labels]).double().square().sum(dim=-1)
            for cluster in range(self.clusters[k]):
                codes = (labels == cluster).nonzero()[:, 0]
                found[k, cluster] = codes[distances[codes].argmin()]
        return found

    @staticmethod
    def codes_of(labels: Tensor, medoids: Tensor) -> Tensor:
        """The center codes of labels [B, K, T], given `medoids` [K, M], both long; -1 is preserved."""
        found = [row[book.clamp(min=0)] for row, book in zip(medoids, labels.unbind(1), strict=True)]
        return torch.where(labels < 0, -1, torch.stack(found, dim=1))

    def save(self, folder: str | Path) -> None:
        """Write config.json and clusters.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
        tensors = {"labels": self.labels.to(torch.int32)}
        write_safetensors(folder / "clusters.safetensors", tensors, {"format": "tessera-clusters"})
        described = ClusteringFile(
            tokenizer=self.tokenizer,
            clusters=self.clusters,
            method=self.method,
            seed=self.seed,
            fingerprint=self.spec.fingerprint,
        )
        write_sealed_json(folder / "config.json", described.model_dump(mode="json"))


class ClusteredTokenizer(Tokenizer):
    """A tokenizer whose codes are the coarse labels of another tokenizer.

    It decodes a label as the code nearest to the center of its cluster. A language model of labels can therefore be
    used like one of codes; its samples are coarse.
    """

    def __init__(self, tokenizer: Tokenizer, clustering: Clustering):
        """ValueError: the clusters are of another tokenizer."""
        clustering.check(tokenizer.spec)
        self.fine, self.clustering = tokenizer, clustering
        self.config, self.net, self.quantizer = tokenizer.config, tokenizer.net, tokenizer.quantizer
        self.spec = clustering.spec
        self.cardinalities, self.geometry = self.spec.cardinalities, self.spec.geometry
        self.medoids = clustering.medoids(tokenizer.vectors())

    def encode(self, media: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Like the fine tokenizer, with labels instead of codes."""
        encoded = self.fine.encode(media, lengths)
        return Encoded(self.clustering.coarse(encoded.codes), encoded.lengths)

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Like the fine tokenizer, from labels [B, K, T]."""
        return self.fine.decode(self._codes(codes), lengths)

    def embed(self, codes: Tensor) -> Tensor:
        """Latents [B, D, T] of labels [B, K, T]."""
        return self.fine.embed(self._codes(codes))

    def vectors(self) -> Tensor:
        """Centers of the clusters [K, M, D]."""
        return self.clustering.centers(self.fine.vectors())

    def save(self, folder: str | Path) -> None:
        """Write the fine tokenizer; the clusters are saved separately."""
        self.fine.save(folder)

    def _codes(self, labels: Tensor) -> Tensor:
        self.check_codes(labels)
        return self.clustering.codes_of(labels.cpu(), self.medoids)


def load_clustering(folder: str | Path) -> Clustering:
    """Read a clustering folder.

    Raises:
        FileNotFoundError: it is missing. ValueError: damaged or foreign files; names the file.
    """
    path = Path(folder) / "config.json"
    if folder_kind(folder) not in ("clusters", None) or Path(folder).is_file():
        raise ValueError(describe_wrong(folder, "a folder of clusters"))
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no clusters here (config.json is missing); make them with: tessera coarse TOKENIZER "
            f"--clusters 512 -o {folder}"
        )
    data = read_sealed_json(path)
    if not isinstance(data, dict) or data.get("format") != "tessera-clusters":
        raise ValueError(f"{path}: not a config of clusters (its format is not 'tessera-clusters')")
    described = check_config(data, ClusteringFile, str(path))
    path = Path(folder) / "clusters.safetensors"
    tensors, metadata = read_safetensors(path)
    check_format(path, metadata, "tessera-clusters")
    if set(tensors) != {"labels"} or tensors["labels"].dtype != torch.int32:
        raise ValueError(f"{path}: must hold one tensor 'labels' of int32, found {', '.join(sorted(tensors))}")
    try:
        found = Clustering(described.tokenizer, tensors["labels"].long(), described.method, described.seed)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if found.spec.fingerprint != described.fingerprint or found.clusters != described.clusters:
        raise ValueError(f"{path}: the labels do not match config.json; copy the folder again")
    return found


def cluster_codes(
    tokenizer: Tokenizer, clusters: int | Sequence[int], method: MethodName = "kmeans", seed: int = 0
) -> Clustering:
    """Cluster the codes of each codebook by their code vectors.

    Args:
        clusters: number of clusters, one for all codebooks or one per codebook.
    Raises:
        ValueError: a number below 1 or above a codebook's number of codes, or a list whose length is not K.
    """
    sizes = tokenizer.spec.cardinalities
    counts = [clusters] * len(sizes) if isinstance(clusters, int) else list(clusters)
    if len(counts) != len(sizes):
        raise ValueError(
            f"clusters has {len(counts)} numbers but tokenizer '{tokenizer.spec.name}' has {len(sizes)} codebooks; "
            f"give one number or {len(sizes)}"
        )
    for k, (size, number) in enumerate(zip(sizes, counts, strict=True)):
        if not 1 <= number <= size:
            raise ValueError(
                f"codebook {k} of tokenizer '{tokenizer.spec.name}' has {size} codes, which cannot form {number} "
                f"clusters; choose 1 to {size}, for instance {max(1, size // 8)}"
            )
    labels = torch.full((len(sizes), max(sizes)), -1)
    vectors = tokenizer.vectors().cpu()
    for k, (size, number) in enumerate(zip(sizes, counts, strict=True)):
        labels[k, :size] = group_vectors(vectors[k, :size], number, method, seed)
    return Clustering(tokenizer.spec, labels, method, seed)


@dataclass(frozen=True)
class ClusterReport:
    """How similar the codes of a cluster are, in one codebook."""

    codebook: int
    codes: int
    clusters: int
    sizes: tuple[int, int, int]
    """Codes of the smallest, the median and the largest cluster."""
    distance: float
    """Root mean squared distance of the code vectors to the center of their cluster."""
    random_distance: float
    """Expectation of the same for random clusters of the same sizes."""

    @property
    def closer(self) -> float:
        """Reduction of the squared distance relative to random clusters: 1 for equal vectors, 0 for chance."""
        return 1 - self.distance**2 / self.random_distance**2 if self.random_distance else 1.0

    @property
    def near_random(self) -> bool:
        """Whether the clusters are hardly better than random ones, and so do not help a refiner."""
        return self.clusters > 1 and self.closer < MIN_IMPROVEMENT


def measure_clusters(clustering: Clustering, vectors: Tensor) -> list[ClusterReport]:
    """Compare the clusters of each codebook with random ones; vectors [K, V, D] are the tokenizer's."""
    reports = []
    for k, size in enumerate(clustering.tokenizer.cardinalities):
        book, labels, counts = vectors[k, :size].cpu(), clustering.labels[k, :size], clustering.sizes(k).sort().values
        reports.append(
            ClusterReport(
                codebook=k,
                codes=size,
                clusters=clustering.clusters[k],
                sizes=(int(counts[0]), int(counts[len(counts) // 2]), int(counts[-1])),
                distance=scatter_within(book, labels) ** 0.5,
                random_distance=scatter_of_random(book, labels) ** 0.5,
            )
        )
    return reports
