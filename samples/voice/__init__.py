"""Parts of make_voice: sentences to read, synthesizers, and the alignment of their phonemes."""
