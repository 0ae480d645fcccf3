"""How one decode step runs: eager, compiled, or as a CUDA graph."""
