"""Public language models, read and written in their own layout."""
