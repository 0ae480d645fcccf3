"""Language models by kind: causal, masked, next-scale, next-patch, coarse-to-fine."""
