"""Text of other languages than English as units, by espeak-ng where it is installed.

The library is called in this process: Debian's libespeak-ng1 with espeak-ng-data, or the package espeakng-loader.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import threading
import unicodedata
from collections.abc import Mapping
from functools import cache

from .phoneme_symbols import PRIMARY, SECONDARY
from .units import WORD_BOUNDARY, Reading, SpokenWord

_EXPLICIT = re.compile(r"\[\[([^\[\]\n]{0,1000})\]\]")
_MARK = re.compile(r"[,.;:!?…。！？、，；：]{1,9}(?=[\s\"'’”»)\]]|\Z)|—|(?<=\s)[-–](?=\s)")
_PLAIN_MARKS = {"。": ".", "！": "!", "？": "?", "、": ",", "，": ",", "；": ";", "：": ":", "-": "—", "–": "—"}
_LANGUAGE_SWITCH = re.compile(r"\([a-z]{2,3}(?:-[a-z0-9-]{1,12})?\)")
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _IPA = 2, 0x8000, 1, 2
_LOCK = threading.Lock()
"""espeak-ng has one voice at a time."""


class EspeakFrontEnd:
    """Text of one language -> units of IPA.

    Args:
        language: name of a voice of espeak-ng.
        lexicon: phonemes of words that espeak-ng is not asked for.
    """

    def __init__(self, language: str, lexicon: Mapping[str, str]):
        self.language = language
        self.lexicon = lexicon

    def with_lexicon(self, lexicon: Mapping[str, str]) -> EspeakFrontEnd:
        """The front end with another lexicon."""
        return EspeakFrontEnd(self.language, lexicon)

    def normalize(self, text: str) -> str:
        """The text; espeak-ng normalizes while it speaks."""
        return " ".join(text.split())

    def read(self, text: str) -> Reading:
        """See UnitText.reading. Raises ValueError if espeak-ng or the language is not installed."""
        words: list[SpokenWord] = []
        for place, part in enumerate(_EXPLICIT.split(unicodedata.normalize("NFC", text))):
            if place % 2:
                words += [SpokenWord(word, ipa_units(word)) for word in part.split()]
                continue
            end = 0
            for mark in _MARK.finditer(part):
                words += self._read_clause(part[end : mark.start()])
                marks = [_PLAIN_MARKS.get(sign, sign) for sign in mark[0]]
                if words and not part[: mark.start()][-1:].isspace():
                    last = words.pop()
                    words.append(SpokenWord(last.written + mark[0], [*last.units, *marks]))
                else:
                    words.append(SpokenWord(mark[0], marks))
                end = mark.end()
            words += self._read_clause(part[end:])
        return Reading(words, list(dict.fromkeys(word.written for word in words if not word.units)))

    def _read_clause(self, clause: str) -> list[SpokenWord]:
        """The words of a clause, by espeak-ng in runs between words of the lexicon."""
        words: list[SpokenWord] = []
        run: list[str] = []
        for written in clause.split():
            bare = written.strip("\"'“”„‚‘’«»()[]{}*_")
            phonemes = self.lexicon.get(bare) or self.lexicon.get(bare.lower())
            if phonemes is None:
                run.append(written)
            else:
                words += [*self._spoken(run), SpokenWord(written, ipa_units(phonemes))]
                run = []
        return words + self._spoken(run)

    def _spoken(self, run: list[str]) -> list[SpokenWord]:
        """Words with their units; words that espeak-ng speaks as one stay together."""
        if not run:
            return []
        spoken = phonemize(" ".join(run), self.language).split()
        counts = [1] * len(run)
        if len(spoken) != len(run):
            counts = [len(phonemize(word, self.language).split()) for word in run]
        if sum(counts) != len(spoken):
            return [SpokenWord(" ".join(run), ipa_units(" ".join(spoken)))]
        parts = iter(spoken)
        return [
            SpokenWord(word, ipa_units(" ".join(next(parts) for _ in range(count))))
            for word, count in zip(run, counts, strict=True)
        ]


def ipa_units(phonemes: str) -> list[str]:
    """Split IPA into units: each letter with its combining marks, length marks and tones, and the stress before it."""
    units: list[str] = []
    stress, tied = "", False
    for symbol in _LANGUAGE_SWITCH.sub("", unicodedata.normalize("NFC", phonemes)):
        category = unicodedata.category(symbol)
        if symbol in (PRIMARY, SECONDARY):
            stress = symbol
        elif symbol.isspace():
            units.append(WORD_BOUNDARY)
            stress, tied = "", False
        elif symbol.isalpha() and category != "Lm" and not tied:
            units.append(stress + symbol)
            stress = ""
        elif units and units[-1] != WORD_BOUNDARY and (tied or category in ("Lm", "Mn", "Sk") or symbol.isdigit()):
            units[-1] += symbol
            tied = symbol in "\u0361\u035c"
    return units


def phonemize(text: str, language: str) -> str:
    """IPA of a clause, words separated by spaces. Raises ValueError if espeak-ng or its voice is not installed."""
    with _LOCK:
        library = _library()
        if library.espeak_SetVoiceByName(language.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice '{language}'; espeak-ng --voices lists those that are installed")
        buffer = ctypes.create_string_buffer(text.replace("\0", " ").encode())
        place = ctypes.c_void_p(ctypes.addressof(buffer))
        clauses = []
        while place.value:
            clauses.append(library.espeak_TextToPhonemes(ctypes.byref(place), _UTF8, _IPA).decode())
    return " ".join(clauses)


@cache
def _library() -> ctypes.CDLL:
    """espeak-ng, initialized."""
    path, data = ctypes.util.find_library("espeak-ng"), None
    if path is None:
        try:
            import espeakng_loader  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                "phonemes of other languages than English need espeak-ng, which is not installed; "
                "apt install espeak-ng, or pip install espeakng-loader"
            ) from None
        path, data = espeakng_loader.get_library_path(), str(espeakng_loader.get_data_path()).encode()
    library = ctypes.CDLL(path)
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_int]
    if library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT) < 0:
        raise ValueError(f"espeak-ng ({path}) has no data; apt install espeak-ng-data")
    return library
