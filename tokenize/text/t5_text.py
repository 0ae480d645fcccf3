"""Text tokenizer `t5`: the pieces of T5's SentencePiece model, then the end of the text.

    "hello world" ──► ▁hello ▁world </s>

It is never trained here: it comes with a public model whose table of embeddings has a row for each piece and rows
without one (sentinels, padding to a round number). A character that no piece has becomes the unknown piece.
Source: T5, arXiv:1910.10683; the ids are those of transformers' T5Tokenizer (Apache-2.0), but special pieces written
out in a text, such as "</s>", are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveInt

from ...configs.schema import Config
from .base import TextTokenizer, normalise
from .sentencepiece_text import MODEL_FILE, open_pieces


class T5TextConfig(Config):
    """The text tokenizer of T5, of a public model; it is not learned from a corpus."""

    kind: Literal["t5"] = "t5"
    vocab_size: int = Field(32128, ge=2, le=1_000_000)
    """Rows of the model's table, at least the pieces of the tokenizer."""
    max_characters: PositiveInt = 4096
    """Longer text raises an error."""


class T5Text(TextTokenizer):
    """Text tokenizer with a SentencePiece model of T5.

    Raises:
        ValueError: it is no SentencePiece model, has no end or unknown piece, or more pieces than the config allows.
    """

    config: T5TextConfig

    def __init__(self, config: T5TextConfig, model: bytes, where: str):
        super().__init__(config)
        self.model, self.vocab_size = model, config.vocab_size
        self.processor = open_pieces(model, where)
        self.num_pieces, self.end = int(self.processor.get_piece_size()), int(self.processor.eos_id())
        if self.end < 0 or self.processor.unk_id() < 0:
            raise ValueError(f"{where}: has no end of a text or no unknown piece, so it is not the tokenizer of a T5")
        if self.num_pieces > self.vocab_size:
            raise ValueError(
                f"{where}: has {self.num_pieces} pieces, but the model's table of texts has {self.vocab_size} rows; "
                "they do not belong together"
            )

    def read(self, text: str) -> str:
        """See TextTokenizer."""
        return normalise(text, "none")

    def files(self) -> dict[str, bytes]:
        """See TextTokenizer."""
        return {MODEL_FILE: self.model}

    def names_of_ids(self) -> tuple[str, ...]:
        """See TextTokenizer."""
        pieces = tuple(self.processor.id_to_piece(i) for i in range(self.num_pieces))
        return (*pieces, *(f"<row {i}>" for i in range(self.num_pieces, self.vocab_size)))

    def unread(self, text: str) -> list[str]:
        """See TextTokenizer."""
        unknown = self.processor.unk_id()
        return [one for one in dict.fromkeys(text) if not one.isspace() and unknown in self.processor.encode(one)]

    def _encode(self, text: str) -> list[int]:
        return [*self.processor.encode(text), self.end]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode([i for i in ids if i < self.num_pieces])
