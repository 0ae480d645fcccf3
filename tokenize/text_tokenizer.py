"""Text tokenizers for text conditioning: UTF-8 bytes, or a SentencePiece model trained on the corpus.

This is the only file that imports sentencepiece.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import sentencepiece
from pydantic import Field, PositiveInt

from ..configs.files import write_atomic
from ..configs.schema import Config
from .text_normalization import spell_digits, spell_words

MODEL_FILE = "text.model"
MAX_MODEL_BYTES = 64 << 20
NUM_BYTES = 256
WORD_START = "\u2581"
"""SentencePiece's symbol for a space."""


class ByteTextConfig(Config):
    """UTF-8 bytes: 256 ids, nothing to train."""

    kind: Literal["bytes"] = "bytes"
    normalise: Literal["none", "words"] = "none"
    """words: "It's 31°!" becomes "it's three one" (see `spell_words`). none: unchanged."""
    max_characters: PositiveInt = 4096
    """Longer text raises an error."""


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


TextConfig = Annotated[ByteTextConfig | SentencePieceConfig, Field(discriminator="kind")]


class TextTokenizer:
    """Base class of the text tokenizers; created by `make_text` or `load_text`."""

    vocab_size: int

    def __init__(self, config: ByteTextConfig | SentencePieceConfig):
        self.config = config

    def encode(self, text: str) -> list[int]:
        """Text -> ids, at least one. Raises ValueError if the text is empty or longer than the config allows."""
        prepared = prepare_text(text, self.config)
        return self._encode(prepared)

    def num_characters(self, text: str) -> int:
        """Number of characters of the normalized text, of any length; 0 if nothing is left of it."""
        return len(self.read(text))

    def read(self, text: str) -> str:
        """The normalized text, of any length; normalization is idempotent."""
        return _normalise(text, self.config.normalise)

    def spell(self, text: str) -> str:
        """The text with numbers spelled out but punctuation kept, for splitting it into chunks."""
        return spell_digits(text) if self.config.normalise == "words" else text

    def known_characters(self) -> frozenset[str] | None:
        """The normalized characters in the training data; None if unknown (bytes treat all characters alike)."""
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> normalized text (invalid UTF-8 becomes U+FFFD). Raises ValueError if an id is out of range."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"text id {token_id} is out of range, this text tokenizer has {self.vocab_size} ids")
        return self._decode(ids)

    def save(self, folder: str | Path) -> None:
        """Write the files that `load_text` needs into an existing folder."""

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError


class ByteText(TextTokenizer):
    """Text tokenizer whose ids are UTF-8 bytes."""

    vocab_size = NUM_BYTES

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class SentencePieceText(TextTokenizer):
    """Text tokenizer with a SentencePiece model."""

    def __init__(self, config: SentencePieceConfig, model: bytes, where: str):
        super().__init__(config)
        self.model = model
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size = int(self.processor.get_piece_size())
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: not a SentencePiece model ({' '.join(str(error).split())[:200]})") from None
        if not any(self.processor.is_byte(piece) for piece in range(self.vocab_size)):
            raise ValueError(
                f"{where}: has no byte tokens, so some text would have no ids; train it with byte_fallback"
            )

    def save(self, folder: str | Path) -> None:
        write_atomic(Path(folder) / MODEL_FILE, self.model)

    def known_characters(self) -> frozenset[str]:
        """See TextTokenizer. Every character of the corpus occurs in a piece; all others are encoded as bytes."""
        each = range(self.vocab_size)
        learned = [i for i in each if not (self.processor.is_byte(i) or self.processor.is_unknown(i))]
        return frozenset("".join(self.processor.id_to_piece(i) for i in learned).replace(WORD_START, " "))

    def _encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))

    def _decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode(list(ids))


def make_text(config: ByteTextConfig | SentencePieceConfig, sentences: Iterable[str]) -> TextTokenizer:
    """Build a text tokenizer; the same sentences in the same order give the same tokenizer.

    Args:
        sentences: the corpus; used only by kinds that are trained. Texts that normalize to nothing are ignored.
    Raises:
        ValueError: no text to train on, or vocab_size is below the number of characters in the corpus.
    """
    if config.kind == "bytes":
        return ByteText(config)
    prepared = [text for text in (_normalise(sentence, config.normalise) for sentence in sentences) if text]
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


def load_text(folder: str | Path, config: ByteTextConfig | SentencePieceConfig) -> TextTokenizer:
    """Load a text tokenizer written by `save`. FileNotFoundError: no text.model. ValueError: it is unusable."""
    if config.kind == "bytes":
        return ByteText(config)
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the text tokenizer '{config.kind}' needs it")
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_MODEL_BYTES}")
    return SentencePieceText(config, path.read_bytes(), str(path))


def prepare_text(text: str, config: ByteTextConfig | SentencePieceConfig) -> str:
    """Check and normalize a text for encoding. Raises ValueError if nothing is left, it is not valid Unicode, or it is
    longer than the config allows."""
    if len(text) > config.max_characters:
        raise ValueError(f"the text has {len(text)} characters, the limit is {config.max_characters}; split it")
    check_unicode(text)
    prepared = _normalise(text, config.normalise)
    if not prepared:
        raise ValueError(f"the text {text!r} is empty" + (" once punctuation is left out" if text.strip() else ""))
    return prepared


def check_unicode(text: str) -> None:
    """Raise ValueError if the text contains a lone surrogate, which Python makes of bytes that are not UTF-8."""
    broken = next((place for place, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
    if broken is not None:
        raise ValueError(
            f"the text is not Unicode: character {broken} is U+{ord(text[broken]):04X}, half of a pair; give it in "
            "UTF-8"
        )


def _normalise(text: str, how: str) -> str:
    if how == "words":
        return spell_words(text)
    return text if text.strip() else ""
