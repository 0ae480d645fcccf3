"""Text tokenizer `bpe`: byte-level byte-pair encoding learned from the corpus, or a given tokenizer.json.

    "low lower<|end|>"  ──►  low  Ġlow  er  <|end|>          Ġ is a space

This is the only file that imports tokenizers, an optional package.
Source: byte-level BPE of GPT-2, with its way of splitting a text; ids are those of Hugging Face tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from ...configs.printable import one_line
from ...configs.schema import Config
from .base import MAX_FILE_BYTES, TextTokenizer, check_unicode, normalise, spell
from .byte_text import NUM_BYTES
from .coverage import named
from .tokenizer_json import MOST_IDS, check_bpe_json

BPE_FILE = "text.json"
"""In a model directory, a tokenizer.json; not under that name, as the folder tokenizer/ beside it is another one."""
MOST_SPECIALS = 1000
SPEAKER = re.compile(r"\[\d+\]")
"""The number of a speaker, at the beginning of a text."""


class BPETextConfig(Config):
    """Byte-level byte-pair encoding (BPE), learned from the corpus, or of a tokenizer.json."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int | None = Field(None, ge=2, le=MOST_IDS)
    """Number of ids. Learned: the 256 bytes, the specials and as many pieces as that leaves, fewer for a small corpus.
    With `file`: rows of the model's table, at least the ids of the file; null: as many."""
    specials: tuple[str, ...] = Field((), max_length=MOST_SPECIALS)
    """Special tokens, each one id wherever it occurs in a text, for instance <|end|>; a file has its own."""
    file: str | None = None
    """A tokenizer.json of Hugging Face tokenizers with a BPE model; it is copied into the model directory."""
    speakers: Literal["none", "numbered"] = "none"
    """numbered: a text begins with the number of its speaker, for instance [1]; [0] is put before one without (CSM)."""
    normalise: Literal["none", "words"] = "none"
    """words: "It's 31°!" becomes "it's three one" (see `spell_words`). none: unchanged."""
    max_characters: PositiveInt = 4096
    """Longer text raises an error."""

    @field_validator("specials")
    @classmethod
    def _usable(cls, specials: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(specials)) < len(specials):
            raise ValueError("the special tokens must be different")
        if any(not 1 <= len(one) <= 256 or one != one.strip() for one in specials):
            raise ValueError("a special token has 1 to 256 characters and no white space at its ends")
        for one in specials:
            check_unicode(one)
        return specials

    @model_validator(mode="after")
    def _fits(self) -> BPETextConfig:
        if self.speakers == "numbered" and self.normalise == "words":
            raise ValueError("normalise: words would take the number of a speaker apart; leave out one of them")
        if self.file is not None:
            if self.specials:
                raise ValueError("special tokens of text kind 'bpe' with a file are those of the file; leave them out")
            return self
        if self.vocab_size is None:
            raise ValueError("text kind 'bpe' needs a vocab_size, to be learned from the corpus, or the file of one")
        if self.vocab_size < NUM_BYTES + len(self.specials):
            raise ValueError(
                f"vocab_size {self.vocab_size} is too small for {NUM_BYTES} bytes and {len(self.specials)} special "
                "tokens; raise it or use text: {kind: bytes}"
            )
        if self.specials and self.normalise == "words":
            raise ValueError("normalise: words would take special tokens apart; leave out one of them")
        return self


class BPEText(TextTokenizer):
    """Text tokenizer with a tokenizer.json.

    Args:
        model: the content of the file.
    Raises:
        ValueError: it is no tokenizer.json with a BPE model, or has more ids than the config allows; begins with
            `where`. ImportError: the package tokenizers is not installed.
    """

    config: BPETextConfig

    def __init__(self, config: BPETextConfig, model: bytes, where: str):
        super().__init__(config)
        check_bpe_json(model, where)
        tokenizers = _tokenizers()
        self.model, self.where = model, where
        self._tokenizer = self._call(tokenizers.Tokenizer.from_str, model.decode("utf-8-sig"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.num_ids = 1 + max(self._tokenizer.get_vocab().values())
        self.vocab_size = self.num_ids if config.file is None else config.vocab_size or self.num_ids
        if self.num_ids > self.vocab_size:
            raise ValueError(
                f"{where}: has {self.num_ids} ids, but the model's table of texts has {self.vocab_size} rows; raise "
                "vocab_size, or leave it out"
            )
        self._added = {i: token.content for i, token in self._tokenizer.get_added_tokens_decoder().items()}
        self._byte_level = isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel)
        self._before, self._after = self._frame()

    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids that are put before and after each text."""
        tried = self._call(self._tokenizer.encode, "a")
        ids, mask = tried.ids, tried.special_tokens_mask
        before = len([*takewhile(bool, mask)])
        after = len([*takewhile(bool, reversed(mask[before:]))])
        return ids[:before], ids[len(ids) - after :]

    def read(self, text: str) -> str:
        """See TextTokenizer."""
        found = normalise(text, self.config.normalise)
        numbered = self.config.speakers == "none" or not found or SPEAKER.match(found)
        return found if numbered else f"[0]{found}"

    def prepare(self, text: str) -> str:
        """See TextTokenizer. ValueError also if nothing of the text has an id."""
        prepared = super().prepare(text)
        self._encode(prepared)
        return prepared

    def encode(self, text: str) -> list[int]:
        """See TextTokenizer; special tokens in the text are one id each, and those that the file puts around a text
        are around it."""
        return self._encode(super().prepare(text))

    def spell(self, text: str) -> str:
        """See TextTokenizer."""
        return spell(text, self.config.normalise)

    def files(self) -> dict[str, bytes]:
        """See TextTokenizer."""
        return {BPE_FILE: self.model}

    def special_ids(self) -> dict[str, int]:
        """See TextTokenizer."""
        return {token: i for i, token in sorted(self._added.items())}

    def names_of_ids(self) -> tuple[str, ...]:
        """See TextTokenizer."""
        names = (self._tokenizer.id_to_token(i) for i in range(self.num_ids))
        rows = (f"<row {i}>" for i in range(self.num_ids, self.vocab_size))
        return (*(f"<row {i}>" if name is None else name for i, name in enumerate(names)), *rows)

    def unread(self, text: str) -> list[str]:
        """See TextTokenizer."""
        name = self._tokenizer.model.unk_token
        unknown = None if name is None else self._tokenizer.token_to_id(name)

        def is_read(one: str) -> bool:
            ids = self._call(self._tokenizer.encode, one, add_special_tokens=False).ids
            return bool(ids) and unknown not in ids

        return [one for one in dict.fromkeys(self.read(text)) if not one.isspace() and not is_read(one)]

    def _encode(self, text: str) -> list[int]:
        ids = self._call(self._tokenizer.encode, text).ids
        if not ids:
            raise ValueError(f"nothing of the text {named([text])} has an id in this text tokenizer")
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        ids = [i for i in ids if i < self.num_ids]
        if self._before and ids[: len(self._before)] == self._before:
            ids = ids[len(self._before) :]
        if self._after and ids[-len(self._after) :] == self._after:
            ids = ids[: -len(self._after)]
        if not self._byte_level:
            return self._decode_run(ids)
        # Apart: the package reads a special token as bytes, so that "<é>" would become broken UTF-8.
        return "".join(
            "".join(map(self._added.__getitem__, run)) if added else self._decode_run(list(run))
            for added, run in groupby(ids, self._added.__contains__)
        )

    def _decode_run(self, ids: list[int]) -> str:
        return self._call(self._tokenizer.decode, ids, skip_special_tokens=False)

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What a function of the package returns; ValueError if it fails."""
        try:
            return function(*args, **options)
        except BaseException as error:  # its panics derive from BaseException alone
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ValueError(
                f"{self.where}: not a tokenizer.json that the package tokenizers can use ({one_line(error, 200)})"
            ) from None


def train_bpe(config: BPETextConfig, sentences: Iterable[str]) -> BPEText:
    """Read the file of the config, or learn the pieces; see `make_text`.

    Raises:
        ValueError: an unusable file, no sentences, or a special token that is a piece. FileNotFoundError: no such file.
            ImportError: the package tokenizers is not installed.
    """
    if config.file is not None:
        return BPEText(config, _read_file(Path(config.file)), config.file)
    assert config.vocab_size is not None
    tokenizers = _tokenizers()
    prepared = [text for text in (normalise(sentence, config.normalise) for sentence in sentences) if text]
    if not prepared:
        raise ValueError("the text tokenizer has no sentences to train on; add transcripts, or use text: {kind: bytes}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(config.specials),
        min_frequency=2,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_between(prepared, config.specials), trainer)
    pieces = tokenizer.get_vocab()
    for special in config.specials:
        if special in pieces:
            raise ValueError(f"the special token {special!r} is also a piece of text; name it like <|{special}|>")
    added = [tokenizers.AddedToken(one, special=True, normalized=False) for one in config.specials]
    tokenizer.add_special_tokens(added)
    return BPEText(config, tokenizer.to_str().encode(), "the trained text tokenizer")


def _between(sentences: Iterable[str], specials: Sequence[str]) -> Iterator[str]:
    """The parts of sentences between special tokens, of which the longest is found first."""
    if not specials:
        yield from sentences
        return
    pattern = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))))
    for sentence in sentences:
        yield from pattern.split(sentence)


def _read_file(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name the tokenizer.json in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; text: {{kind: bpe, file: ...}} names a tokenizer.json")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_FILE_BYTES}")
    return path.read_bytes()


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "the text tokenizer 'bpe' needs the package tokenizers: pip install 'tessera-lm[bpe]'"
        ) from None
    return tokenizers
