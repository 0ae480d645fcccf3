"""Condition inputs: label, text, embedding, codes; joined by prefix, sum or cross-attention."""
