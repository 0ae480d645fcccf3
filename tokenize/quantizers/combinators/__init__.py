"""Quantizers composed of other quantizers: residual, grouped, multi-scale, and wrappers around one."""
