"""Text tokenizer `bytes`: the UTF-8 bytes of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt

from ...configs.schema import Config
from .base import TextTokenizer, normalise, spell

NUM_BYTES = 256


class ByteTextConfig(Config):
    """UTF-8 bytes: 256 ids, nothing to train."""

    kind: Literal["bytes"] = "bytes"
    normalise: Literal["none", "words"] = "none"
    """words: "It's 31°!" becomes "it's three one" (see `spell_words`). none: unchanged."""
    max_characters: PositiveInt = 4096
    """Longer text raises an error."""


class ByteText(TextTokenizer):
    """Text tokenizer whose ids are UTF-8 bytes."""

    vocab_size = NUM_BYTES
    config: ByteTextConfig

    def read(self, text: str) -> str:
        """See TextTokenizer."""
        return normalise(text, self.config.normalise)

    def spell(self, text: str) -> str:
        """See TextTokenizer."""
        return spell(text, self.config.normalise)

    def names_of_ids(self) -> tuple[str, ...]:
        """See TextTokenizer."""
        return tuple(f"<0x{byte:02X}>" for byte in range(NUM_BYTES))

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")
