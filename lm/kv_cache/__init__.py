"""KV caches: static, block, sliding window, quantized, evicting."""
