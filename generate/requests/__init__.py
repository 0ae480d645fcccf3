"""What is asked for: a checked request, its conditions, its prompt."""
