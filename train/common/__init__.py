"""Shared by both trainers: the training loop, optimizer config, checkpoints, metrics, batch sampler, signals."""
