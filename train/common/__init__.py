"""Shared by both trainers: checkpoints, metrics, batches, signals."""
