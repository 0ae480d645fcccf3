"""Engines: one optimizer step, with torch or DeepSpeed."""
