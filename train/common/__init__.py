"""Shared by both trainers: training loop, optimizer config, checkpoints, metrics, batch sampler, captions, signals."""
