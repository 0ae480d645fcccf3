"""Text and audio longer than the training examples: chunks and sliding windows."""
