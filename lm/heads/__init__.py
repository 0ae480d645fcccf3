"""Output heads: parallel, flat, depth transformer, bits, multi-token prediction."""
