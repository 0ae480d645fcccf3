"""The English front end: text as spoken words, and words as phonemes."""
