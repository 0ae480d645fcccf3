"""Codecs that the package transformers computes, as frozen tokenizers (extra `hub`)."""
