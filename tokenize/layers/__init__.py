"""Layers that audio and image networks share."""
