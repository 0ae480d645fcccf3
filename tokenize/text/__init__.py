"""Text tokenizers: text to ids, by kind (bytes, characters, sentencepiece, BPE, phonemes), and what prepares text."""
