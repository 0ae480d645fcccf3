"""Evaluation of tokenizers: reconstruction, code usage, stability, speed."""
