"""Clusters of codes: the coarse vocabulary of coarse-to-fine models."""
