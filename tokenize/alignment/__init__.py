"""Alignments: which unit of a text sounds when, in files, in shards, and of generated speech."""
