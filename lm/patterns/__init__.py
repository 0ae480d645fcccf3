"""Codebook patterns: how codes [K, T] are laid out over the steps of a sequence (delay, flat, grouped, ...)."""
