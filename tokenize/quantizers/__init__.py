"""Quantizers: vectors to codes and back, by kind, composed as trees."""
