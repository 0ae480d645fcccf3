"""Alignments of text units and audio: in files, in shards, and of generated speech."""
