"""Streaming of audio and images during generation."""
