"""Kernels for decoding: a C GEMV and fused block for CPUs, Triton kernels for GPUs."""
