"""The decoding loops: autoregressive, speculative, masked, next-scale, and the choice between them."""
