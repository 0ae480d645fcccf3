"""Layers shared by audio and image networks."""
