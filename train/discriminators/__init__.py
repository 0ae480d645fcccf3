"""Discriminators and adversarial losses."""
