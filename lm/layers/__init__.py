"""Layers: transformer blocks, input embeddings, position embeddings."""
