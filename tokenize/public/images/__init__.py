"""Public tokenizers of images: LlamaGen, VAR, taming-transformers."""
