"""Text <-> ids, for conditions: bytes, or a SentencePiece model trained on the corpus.

The only file that imports sentencepiece.
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
"""SentencePiece's sign for a space."""


class ByteTextConfig(Config):
    """UTF-8 bytes: 256 ids, nothing to train."""

    kind: Literal["bytes"] = "bytes"
    normalise: Literal["none", "words"] = "none"
    """words: "It's 31°!" is read as "it's three one" (see `spell_words`). none: as it stands."""
    max_characters: PositiveInt = 4096
    """Longer text is an error."""


class SentencePieceConfig(Config):
    """Pieces of words learned from the corpus, and single bytes for what they do not cover."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    vocab_size: int = Field(128, ge=2, le=1_000_000)
    """Pieces to learn, at most: less are used when the corpus has less. The 256 bytes come on top."""
    model: Literal["unigram", "bpe"] = "unigram"
    normalise: Literal["none", "words"] = "words"
    """As in `bytes`."""
    max_characters: PositiveInt = 4096


TextConfig = Annotated[ByteTextConfig | SentencePieceConfig, Field(discriminator="kind")]


class TextTokenizer:
    """Base of the text tokenizers; made by `make_text` or `load_text`."""

    vocab_size: int

    def __init__(self, config: ByteTextConfig | SentencePieceConfig):
        self.config = config

    def encode(self, text: str) -> list[int]:
        """Text -> ids, at least one. ValueError: empty text, or longer than the config allows."""
        prepared = prepare_text(text, self.config)
        return self._encode(prepared)

    def num_characters(self, text: str) -> int:
        """Characters of a text as it is read, of any length; 0 where nothing is left of it."""
        return len(self.read(text))

    def read(self, text: str) -> str:
        """A text of any length as it is read; reading that again changes nothing."""
        return _normalise(text, self.config.normalise)

    def spell(self, text: str) -> str:
        """A text with its numbers as they are read and its punctuation as it stands: what it is cut by."""
        return spell_digits(text) if self.config.normalise == "words" else text

    def known_characters(self) -> frozenset[str] | None:
        """The characters it has learned, as it reads them; None: it takes all alike, so it cannot know."""
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text (as prepared for encoding; broken UTF-8 becomes U+FFFD). ValueError: an id out of range."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"text id {token_id} is out of range, this text tokenizer has {self.vocab_size} ids")
        return self._decode(ids)

    def save(self, folder: str | Path) -> None:
        """Write what `load_text` needs into an existing folder."""

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError


class ByteText(TextTokenizer):
    """Ids are UTF-8 bytes."""

    vocab_size = NUM_BYTES

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


class SentencePieceText(TextTokenizer):
    """Ids of a SentencePiece model."""

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
                f"{where}: has no byte pieces, so some text would have no ids; train it with byte_fallback"
            )

    def save(self, folder: str | Path) -> None:
        write_atomic(Path(folder) / MODEL_FILE, self.model)

    def known_characters(self) -> frozenset[str]:
        """See TextTokenizer. A character of the corpus is in a piece, and every other one is spelled in bytes."""
        each = range(self.vocab_size)
        learned = [i for i in each if not (self.processor.is_byte(i) or self.processor.is_unknown(i))]
        return frozenset("".join(self.processor.id_to_piece(i) for i in learned).replace(WORD_START, " "))

    def _encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))

    def _decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode(list(ids))


def make_text(config: ByteTextConfig | SentencePieceConfig, sentences: Iterable[str]) -> TextTokenizer:
    """Make a text tokenizer; the same sentences in the same order give the same one.

    Args:
        sentences: the corpus; looked at only where the kind is trained. Texts that prepare to nothing are left out.
    Raises:
        ValueError: no text to train on, or fewer pieces asked for than the corpus has letters.
    """
    if config.kind == "bytes":
        return ByteText(config)
    prepared = [text for text in (_normalise(sentence, config.normalise) for sentence in sentences) if text]
    if not prepared:
        raise ValueError(
            "the text tokenizer has no sentences to learn from; add transcripts, or use text: {kind: bytes}"
        )
    characters = len(set("".join(prepared)) | {" "})
    if config.vocab_size < characters:
        raise ValueError(
            f"vocab_size {config.vocab_size} is too small for a corpus with {characters} different characters; raise "
            "it or use text: {kind: bytes}"
        )
    model = io.BytesIO()
    options = {
        "model_type": config.model,
        "vocab_size": config.vocab_size + NUM_BYTES + 1,  # and the unknown piece, which byte pieces make unreachable
        "hard_vocab_limit": False,
        "byte_fallback": True,
        "character_coverage": 1.0,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "max_sentence_length": 4 * max(len(text) for text in prepared) + 4,  # longer ones would be dropped silently
        **{"unk_id": 0, "bos_id": -1, "eos_id": -1, "pad_id": -1},
        **{"num_threads": 1, "minloglevel": 2},
    }
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(prepared), model_writer=model, **options)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise ValueError(
            f"no text tokenizer of {config.vocab_size} pieces can be trained on this corpus ({reason})"
        ) from None
    return SentencePieceText(config, model.getvalue(), "the trained model")


def load_text(folder: str | Path, config: ByteTextConfig | SentencePieceConfig) -> TextTokenizer:
    """Read what `save` wrote. FileNotFoundError: text.model is missing. ValueError: it is not a usable model."""
    if config.kind == "bytes":
        return ByteText(config)
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the text tokenizer '{config.kind}' needs it")
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_MODEL_BYTES}")
    return SentencePieceText(config, path.read_bytes(), str(path))


def prepare_text(text: str, config: ByteTextConfig | SentencePieceConfig) -> str:
    """The text that is encoded: checked and normalised. ValueError: nothing left, not text, or longer than the config
    allows."""
    if len(text) > config.max_characters:
        raise ValueError(
            f"the text has {len(text)} characters, the limit is {config.max_characters}; cut it into pieces"
        )
    check_unicode(text)
    prepared = _normalise(text, config.normalise)
    if not prepared:
        raise ValueError(f"the text {text!r} is empty" + (" once punctuation is left out" if text.strip() else ""))
    return prepared


def check_unicode(text: str) -> None:
    """ValueError: the text holds half a surrogate pair, as Python makes of bytes that are not UTF-8."""
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
