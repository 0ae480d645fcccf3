"""Requests: checked arguments, conditions and prompts."""
