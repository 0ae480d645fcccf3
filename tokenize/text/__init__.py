"""Text tokenizers: text to ids, by kind (bytes, sentencepiece, characters, phonemes), and what prepares the text."""
