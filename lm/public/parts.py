"""What a public folder holds beside its language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...tokenize.base import Tokenizer
from ..conditioning.text_encoder import TextEncoder


@dataclass(frozen=True)
class PublicParts:
    """The other models of a public folder; None: not in it."""

    tokenizer: Tokenizer | None = None
    """The tokenizer of the language model's codes."""
    text_encoder: TextEncoder | None = None
    """Turns text into the vectors of the condition `embedding`."""

    def to(self, device: torch.device | str) -> PublicParts:
        """The same, moved to a device."""
        for part in (self.tokenizer, self.text_encoder):
            if part is not None:
                part.to(device)
        return self
