"""Image tokenizers: networks."""
