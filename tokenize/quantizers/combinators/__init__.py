"""Quantizers made of quantizers: residual, grouped, multi-scale, and wrappers around one."""
