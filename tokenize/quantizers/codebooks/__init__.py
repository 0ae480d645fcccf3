"""Codebooks: their vectors, parametrizations, nearest-neighbor search, k-means, clustering on a graph, vectors from a
file."""
