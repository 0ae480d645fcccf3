"""Codes to logits: codebook patterns, transformer, conditions, KV caches, loss, and the model directory."""
