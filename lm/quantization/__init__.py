"""Weight-only quantization (int8, int4) and the fast decode path of small models on a CPU."""
