"""Layers: transformer blocks and their parts, input embeddings, position embeddings."""
