"""Engines: one optimizer step, by torch or by DeepSpeed."""
