"""KV caches: static, sliding window, quantized, evicting."""
