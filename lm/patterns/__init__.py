"""Codebook patterns: interleave codes [K, T] over the steps of a sequence (delay, flat, grouped, ...)."""
