"""What both trainers share: checkpoints, metrics, batches, signals."""
