"""Losses of tokenizer training."""
