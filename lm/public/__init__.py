"""Public language models: read and write checkpoints in their own layouts."""
