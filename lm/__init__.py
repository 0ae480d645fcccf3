"""Codes to logits: arrangement, transformer, conditions, caches, loss, and the model directory."""
