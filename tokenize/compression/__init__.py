"""Lossless compression of codes: integer networks and a range coder."""
