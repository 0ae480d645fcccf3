"""Audio tokenizers: networks, STFT, resampling, streaming."""
