"""Text tokenizer `sentencepiece`: subword pieces learned from the corpus.

This is the only file that imports sentencepiece.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Literal

import sentencepiece
from pydantic import Field, PositiveInt

from ...configs.schema import Config
from .base import TextTokenizer, normalise, spell
from .byte_text import NUM_BYTES

MODEL_FILE = "text.model"
WORD_START = "\u2581"
"""SentencePiece's symbol for a space."""


class SentencePieceConfig(Config):
    """Subword pieces learned from the corpus, with byte fallback."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    vocab_size: int = Field(128, ge=2, le=1_000_000)
    """Maximum number of pieces to learn; small corpora give fewer. The 256 bytes are added to it."""
    model: Literal["unigram", "bpe"] = "unigram"
    """Algorithm that learns the pieces: unigram language model, or byte-pair encoding (bpe)."""
    normalise: Literal["none", "words"] = "words"
    """words: "It's 31°!" becomes "it's three one" (see `spell_words`). none: unchanged."""
    max_characters: PositiveInt = 4096
    """Longer text raises an error."""


class SentencePieceText(TextTokenizer):
    """Text tokenizer with a SentencePiece model."""

    config: SentencePieceConfig

    def __init__(self, config: SentencePieceConfig, model: bytes, where: str):
        super().__init__(config)
        self.model = model
        self.processor = open_pieces(model, where)
        self.vocab_size = int(self.processor.get_piece_size())
        if not any(self.processor.is_byte(piece) for piece in range(self.vocab_size)):
            raise ValueError(
                f"{where}: has no byte tokens, so some text would have no ids; train it with byte_fallback"
            )

    def read(self, text: str) -> str:
        """See TextTokenizer."""
        return normalise(text, self.config.normalise)

    def spell(self, text: str) -> str:
        """See TextTokenizer."""
        return spell(text, self.config.normalise)

    def files(self) -> dict[str, bytes]:
        """See TextTokenizer."""
        return {MODEL_FILE: self.model}

    def known_characters(self) -> frozenset[str]:
        """See TextTokenizer. Every character of the corpus occurs in a piece; all others are encoded as bytes."""
        each = range(self.vocab_size)
        learned = [i for i in each if not (self.processor.is_byte(i) or self.processor.is_unknown(i))]
        return frozenset("".join(self.processor.id_to_piece(i) for i in learned).replace(WORD_START, " "))

    def names_of_ids(self) -> tuple[str, ...]:
        """See TextTokenizer."""
        return tuple(self.processor.id_to_piece(i) for i in range(self.vocab_size))

    def _encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))

    def _decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode(list(ids))


def open_pieces(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    """The pieces of a SentencePiece model; ValueError, which begins with `where`: it is none."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        processor.get_piece_size()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: not a SentencePiece model ({' '.join(str(error).split())[:200]})") from None
    return processor


def train_sentencepiece(config: SentencePieceConfig, sentences: Iterable[str]) -> SentencePieceText:
    """Learn the pieces; see `make_text`."""
    prepared = [text for text in (normalise(sentence, config.normalise) for sentence in sentences) if text]
    if not prepared:
        raise ValueError("the text tokenizer has no sentences to train on; add transcripts, or use text: {kind: bytes}")
    characters = len(set("".join(prepared)) | {" "})
    if config.vocab_size < characters:
        raise ValueError(
            f"vocab_size {config.vocab_size} is too small for a corpus with {characters} different characters; raise "
            "it or use text: {kind: bytes}"
        )
    model = io.BytesIO()
    options = {
        "model_type": config.model,
        "vocab_size": config.vocab_size + NUM_BYTES + 1,  # plus the unknown piece, unreachable with byte fallback
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "max_sentence_length": 4 * max(len(text) for text in prepared) + 4,  # longer ones would be silently dropped
        **{"unk_id": 0, "bos_id": -1, "eos_id": -1, "pad_id": -1},
        **{"num_threads": 1, "minloglevel": 2},
    }
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(prepared), model_writer=model, **options)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise ValueError(
            f"no text tokenizer of {config.vocab_size} tokens can be trained on this corpus ({reason})"
        ) from None
    return SentencePieceText(config, model.getvalue(), "the trained model")
