"""English text as units: normalization, then pronunciation, with the data file of the front end.

english.zip, beside this file and in each model directory that needs it (samples/make_english.py makes it):

    lexicon.tsv          words and their phonemes (lexicon.py)
    weights.safetensors  classifier of the uses of words, and the network for unknown words
    LICENSES.txt         sources and their licences
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..phoneme_symbols import MARKS, phoneme_units
from ..units import WORD_BOUNDARY, Reading, SpokenWord
from .lexicon import Lexicon
from .normalization import Piece, clean, pieces_of
from .pronunciation import Pronouncer
from .unknown_words import LettersToSounds
from .word_uses import BUCKETS, CLASSES, WordUses

DATA_FILE = "english.zip"
BUILT_IN = Path(__file__).parent / DATA_FILE
MAX_MEMBER_BYTES = 64 << 20
MOST_PASSES = 5
"""A quotation mark or a missing space may hide a context from the first pass: "Henry" VIII."""
_UNREADABLE = (zipfile.BadZipFile, zlib.error, safetensors.SafetensorError, EOFError)


class EnglishFrontEnd:
    """English text -> units.

    Args:
        data: content of english.zip; it is opened on first use.
        where: its path, for error messages.
        lexicon: phonemes of words, before all rules and the built-in lexicon; a word that is not all in capitals also
            stands for its other cases.
    """

    def __init__(self, data: bytes, where: str, lexicon: Mapping[str, str]):
        self.data = data
        self.where = where
        self.lexicon = lexicon
        self._listed = {**{word.lower(): lexicon[word] for word in lexicon if not word.isupper()}, **lexicon}

    def with_lexicon(self, lexicon: Mapping[str, str]) -> EnglishFrontEnd:
        """The front end with another lexicon."""
        return EnglishFrontEnd(self.data, self.where, lexicon)

    @cached_property
    def pronouncer(self) -> Pronouncer:
        """Raises ValueError if the data file is damaged."""
        try:
            with zipfile.ZipFile(io.BytesIO(self.data)) as members:
                for member in members.infolist():
                    if member.file_size > MAX_MEMBER_BYTES:
                        raise ValueError(f"{member.filename} has more than {MAX_MEMBER_BYTES} bytes")
                words, weights = members.read("lexicon.tsv"), members.read("weights.safetensors")
            tensors = safetensors.torch.load(weights)
            uses = tensors.pop("uses")
            if uses.dtype != torch.int8 or uses.shape != (BUCKETS, len(CLASSES)):
                raise ValueError(f"uses is {uses.dtype} {list(uses.shape)}")
            network = LettersToSounds().eval()
            network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except (*_UNREADABLE, KeyError, RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.where}: not usable as data of the front end ({reason}); copy it again") from None
        return Pronouncer(Lexicon(words), WordUses(uses), network.pronounce)

    def normalize(self, text: str) -> str:
        """The spoken words and marks of a text, separated by spaces; normalizing them again changes nothing."""
        for _ in range(MOST_PASSES):
            before, pieces = text, pieces_of(clean(text), self._listed)
            text = " ".join(word for piece in pieces for word in piece.spoken)
            if text == before:
                break
        return text

    def read(self, text: str) -> Reading:
        """See UnitText.reading. Raises ValueError for explicit phonemes that English does not have."""
        text = clean(text)
        pieces = pieces_of(text, self._listed)
        said = iter(self.pronouncer([word for piece in pieces for word in piece.spoken]))
        phonemes = [[next(said) for _ in piece.spoken] for piece in pieces]
        unread = [
            text[piece.start : piece.end]
            for piece, sounds in zip(pieces, phonemes, strict=True)
            if piece.unread or None in sounds
        ]
        return Reading(_as_written(text, pieces, phonemes), list(dict.fromkeys(unread)))


def _as_written(text: str, pieces: list[Piece], phonemes: list[list[str | None]]) -> list[SpokenWord]:
    """Pieces joined to words as written: those between white space."""
    words: list[SpokenWord] = []
    start = end = 0
    units: list[str] = []
    for piece, spoken in zip(pieces, phonemes, strict=True):
        if units and end < piece.start:
            words.append(SpokenWord(text[start:end], units))
            units = []
        if not units:
            start = piece.start
        end = piece.end
        for sounds in spoken:
            if sounds:
                units += sounds if sounds in MARKS else [WORD_BOUNDARY, *phoneme_units(sounds)]
    return [*words, SpokenWord(text[start:end], units)] if units else words


def read_member(path: Path, name: str) -> bytes:
    """A member of a data file."""
    with zipfile.ZipFile(path) as members:
        return members.read(name)
