"""Forced alignment: when each unit of a transcript sounds, by a hidden Markov model trained on the corpus itself."""
