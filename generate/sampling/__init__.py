"""From logits to ids: filters, classifier-free guidance, repetition penalties, counter-based random numbers."""
