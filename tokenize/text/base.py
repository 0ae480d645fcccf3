"""The protocol of text tokenizers: text -> normalized text -> ids, and the files that a model directory keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from ...configs.files import write_atomic
from ...configs.schema import nearest_name
from .normalization import spell_digits, spell_words

MAX_FILE_BYTES = 64 << 20
"""Limit of each file of a text tokenizer."""
Normalise = Literal["none", "words"]


class TextSettings(Protocol):
    """What every text tokenizer's config has."""

    @property
    def kind(self) -> str: ...

    @property
    def max_characters(self) -> int: ...


class TextTokenizer:
    """Base class of the text tokenizers; created by `make_text` or `load_text` (registry.py)."""

    vocab_size: int

    def __init__(self, config: TextSettings):
        self.config = config

    def encode(self, text: str) -> list[int]:
        """Text -> ids, at least one. Raises ValueError if the text is empty or longer than the config allows."""
        return self._encode(self.prepare(text))

    def prepare(self, text: str) -> str:
        """Check and normalize a text. Raises ValueError if nothing is left, it is not valid Unicode, or it is longer
        than the config allows."""
        self.check_length(text)
        prepared = self.read(text)
        if not prepared:
            raise ValueError(f"the text {text!r} is empty" + (" once punctuation is left out" if text.strip() else ""))
        return prepared

    def check_length(self, text: str) -> None:
        """Raise ValueError if the text is longer than the config allows, or not valid Unicode."""
        limit = self.config.max_characters
        if len(text) > limit:
            raise ValueError(f"the text has {len(text)} characters, the limit is {limit}; split it")
        check_unicode(text)

    def num_characters(self, text: str) -> int:
        """Number of characters of the normalized text, of any length; 0 if nothing is left of it."""
        return len(self.read(text))

    def read(self, text: str) -> str:
        """The normalized text, of any length; normalization is idempotent."""
        raise NotImplementedError

    def characters(self, text: str) -> str:
        """The characters of a text by which it is like or unlike the training texts."""
        return self.read(text)

    def spell(self, text: str) -> str:
        """The text with numbers spelled out but punctuation kept, for splitting it into chunks."""
        return text

    def known_characters(self) -> frozenset[str] | None:
        """The normalized characters in the training data; None if unknown (bytes treat all characters alike)."""
        return None

    def names_of_ids(self) -> tuple[str, ...]:
        """What each id stands for, each another name."""
        raise NotImplementedError

    def special_ids(self) -> Mapping[str, int]:
        """Ids of the special tokens by name, each of which stands for itself in a text; empty for kinds without."""
        return {}

    def special_id(self, name: str) -> int:
        """Id of a special token. Raises ValueError if there is none of that name."""
        found = self.special_ids()
        if name not in found:
            known = nearest_name(name, found) if found else "it has none"
            raise ValueError(f"the text tokenizer '{self.config.kind}' has no special token {name!r}; {known}")
        return found[name]

    def unread(self, text: str) -> list[str]:
        """The parts of a text that have no ids and are left out, each once; none for tokenizers that read all text."""
        return []

    def with_lexicon(self, path: str | Path) -> TextTokenizer:
        """This tokenizer with the words of a user's lexicon file added (user_lexicon.py).

        Raises:
            FileNotFoundError: there is no such file. ValueError: a line is wrong, or the kind reads no lexicon.
        """
        raise ValueError(
            f"a lexicon was given, but the model's text tokenizer '{self.config.kind}' does not speak phonemes; leave "
            "it out"
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> normalized text (invalid UTF-8 becomes U+FFFD). Raises ValueError if an id is out of range, or the ids
        of the kind do not tell the text (phonemes)."""
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(f"text id {token_id} is out of range, this text tokenizer has {self.vocab_size} ids")
        return self._decode(ids)

    def files(self) -> Mapping[str, bytes]:
        """Contents of the files that `load_text` needs, by name; empty if it needs none."""
        return {}

    def save(self, folder: str | Path) -> None:
        """Write its files into an existing folder."""
        for name, content in self.files().items():
            write_atomic(Path(folder) / name, content)

    def _encode(self, text: str) -> list[int]:
        """Ids of a prepared text."""
        raise NotImplementedError

    def _decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError


def normalise(text: str, how: Normalise) -> str:
    """words: see `spell_words`. none: unchanged, but "" if there is only white space."""
    if how == "words":
        return spell_words(text)
    return text if text.strip() else ""


def spell(text: str, how: Normalise) -> str:
    """What `TextTokenizer.spell` returns for text normalized by `normalise`."""
    return spell_digits(text) if how == "words" else text


def check_unicode(text: str) -> None:
    """Raise ValueError if the text contains a lone surrogate, which Python makes of bytes that are not UTF-8."""
    broken = next((place for place, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
    if broken is not None:
        raise ValueError(
            f"the text is not Unicode: character {broken} is U+{ord(text[broken]):04X}, half of a pair; give it in "
            "UTF-8"
        )
