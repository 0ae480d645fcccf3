"""The kinds of text tokenizers: how each is made from a corpus, and loaded from the files of a model directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ...configs.json_limits import NAMED, parse_json
from ...configs.schema import check_config
from .base import MAX_FILE_BYTES, TextTokenizer
from .bpe_text import BPE_FILE, BPEText, BPETextConfig, train_bpe
from .byte_text import ByteText, ByteTextConfig
from .character_text import CharacterText, CharacterTextConfig, learn_characters
from .english.front_end import DATA_FILE
from .phoneme_text import PhonemeTextConfig, learn_phonemes, load_phonemes
from .sentencepiece_text import MODEL_FILE, SentencePieceConfig, SentencePieceText, train_sentencepiece
from .t5_text import T5Text, T5TextConfig
from .units import UNITS_FILE, UnitTable
from .user_lexicon import LEXICON_FILE

TextConfig = Annotated[
    ByteTextConfig | SentencePieceConfig | BPETextConfig | CharacterTextConfig | PhonemeTextConfig | T5TextConfig,
    Field(discriminator="kind"),
]

UnitTextConfig = Annotated[CharacterTextConfig | PhonemeTextConfig, Field(discriminator="kind")]
"""The kinds whose ids are units (units.py)."""


def file_names(config: TextConfig) -> tuple[str, ...]:
    """The files that a text tokenizer needs in a model directory."""
    match config:
        case ByteTextConfig():
            return ()
        case SentencePieceConfig() | T5TextConfig():
            return (MODEL_FILE,)
        case BPETextConfig():
            return (BPE_FILE,)
        case CharacterTextConfig():
            return (UNITS_FILE,)
        case PhonemeTextConfig():
            return (UNITS_FILE, LEXICON_FILE, *((DATA_FILE,) if config.language == "en" else ()))


def make_text(config: TextConfig, sentences: Iterable[str]) -> TextTokenizer:
    """Build a text tokenizer; the same sentences in the same order give the same tokenizer.

    Args:
        sentences: the corpus; used only by kinds that are trained. Texts that normalize to nothing are ignored.
    Raises:
        ValueError: no text to train on, vocab_size is below the number of characters in the corpus, the kind is not
            learned from a corpus, or an unusable file that the config names. FileNotFoundError: no such file.
            ImportError: an optional package that the kind needs is not installed.
    """
    match config:
        case ByteTextConfig():
            return ByteText(config)
        case SentencePieceConfig():
            return train_sentencepiece(config, sentences)
        case BPETextConfig():
            return train_bpe(config, sentences)
        case CharacterTextConfig():
            return learn_characters(config, sentences)
        case PhonemeTextConfig():
            return learn_phonemes(config, sentences)
        case T5TextConfig():
            raise ValueError(
                "text kind 't5' comes with a public model and is not learned from a corpus; choose another kind, for "
                "instance sentencepiece, or start from that model with init.from"
            )


def load_text(folder: str | Path, config: TextConfig) -> TextTokenizer:
    """Load a text tokenizer written by `save`. FileNotFoundError: a file is missing. ValueError: it is unusable."""
    files = {}
    for name in file_names(config):
        path = Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; the text tokenizer '{config.kind}' needs it")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_FILE_BYTES}")
        files[name] = path.read_bytes()
    return text_of_files(config, files, folder)


def text_of_files(config: TextConfig, files: Mapping[str, bytes], folder: str | Path) -> TextTokenizer:
    """A text tokenizer from the contents of its files. Raises ValueError that names the file in `folder`."""
    folder = Path(folder)
    match config:
        case ByteTextConfig():
            return ByteText(config)
        case SentencePieceConfig():
            return SentencePieceText(config, files[MODEL_FILE], str(folder / MODEL_FILE))
        case T5TextConfig():
            return T5Text(config, files[MODEL_FILE], str(folder / MODEL_FILE))
        case BPETextConfig():
            return BPEText(config, files[BPE_FILE], str(folder / BPE_FILE))
        case CharacterTextConfig():
            return CharacterText(config, _units(files, folder))
        case PhonemeTextConfig():
            return load_phonemes(config, _units(files, folder), files, folder)


def _units(files: Mapping[str, bytes], folder: Path) -> tuple[str, ...]:
    where = str(folder / UNITS_FILE)
    return check_config(parse_json(files[UNITS_FILE], where, NAMED), UnitTable, where).symbols
