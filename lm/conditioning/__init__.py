"""Condition inputs: label, text, aligned text, embedding, codes; joined by prefix, sum, cross-attention or step."""
