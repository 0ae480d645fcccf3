"""Attention backends by name (sdpa, flash, flex, xformers) and the attention masks they accept."""
