"""Alignments: which unit of a transcript sounds when, in seconds (files) or in frames (shards)."""
