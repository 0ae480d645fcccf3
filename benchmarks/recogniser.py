"""Speech recognition by pocketsphinx, with a grammar or a general language model, and word errors by edit distance.

Its acoustic model and its dictionary of English words come inside the pocketsphinx package.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DIGITS = """#JSGF V1.0;
grammar digits;
public <string> = <digit>+;
<digit> = zero | one | two | three | four | five | six | seven | eight | nine;
"""
SAMPLE_RATE = 16000


class Recogniser:
    """Recognizes words in 16 kHz mono samples."""

    def __init__(self, grammar: str | None = None, words: Mapping[str, str] | None = None):
        """
        Args:
            grammar: in JSGF; None: any English words, with the trigrams of pocketsphinx.
            words: further words with their pronunciations, in phones of pocketsphinx ("HH AH L OW").
        """
        from pocketsphinx import Decoder

        self.decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")
        for word, phones in (words or {}).items():
            self.decoder.add_word(word, phones, False)
        if grammar is not None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "grammar.jsgf"
                file.write_text(grammar)
                self.decoder.add_jsgf_file("grammar", str(file))
            self.decoder.activate_search("grammar")

    def knows(self, word: str) -> bool:
        """Whether the dictionary has a word."""
        return self.decoder.lookup_word(word) is not None

    def words(self, samples: np.ndarray) -> list[str]:
        """Words heard in samples [N], float in [-1, 1]; half a second of faint noise is put before and after."""
        noise = np.random.default_rng(0)
        silence = [noise.normal(0, 1e-3, SAMPLE_RATE // 2) for _ in range(2)]
        sound = np.concatenate([silence[0], samples + noise.normal(0, 1e-3, len(samples)), silence[1]])
        self.decoder.start_utt()
        self.decoder.process_raw((np.clip(sound, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        heard = self.decoder.hyp()
        return heard.hypstr.split() if heard else []


class DigitRecogniser(Recogniser):
    """Recognizes digit words only."""

    def __init__(self):
        super().__init__(DIGITS)


class SentenceRecogniser(Recogniser):
    """Recognizes which of a list of sentences is said."""

    def __init__(self, sentences: Sequence[str], words: Mapping[str, str] | None = None):
        """
        Args:
            sentences: different in their words.
            words: pronunciations of those that pocketsphinx does not know.
        """
        self.sentences = [written_words(sentence) for sentence in sentences]
        rules = " | ".join(" ".join(words) for words in self.sentences)
        super().__init__(f"#JSGF V1.0;\ngrammar sentences;\npublic <sentence> = {rules};\n", words)

    def sentence(self, samples: np.ndarray) -> int | None:
        """Number of the sentence heard; None: nothing was heard to its end."""
        heard = self.words(samples)
        return self.sentences.index(heard) if heard in self.sentences else None


def written_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation around them: "Wishy-washy." is one."""
    return re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower().replace("’", "'"))


def plain_words(text: str) -> list[str]:
    """The words of a text as a recogniser writes them: "Wishy-washy." is two."""
    return [part for word in written_words(text) for part in word.split("-")]


@dataclass(frozen=True)
class WordCounts:
    """How what was heard differs from what was said, by the alignment with the fewest errors."""

    right: int
    changed: int
    missing: int
    inserted: int

    @property
    def errors(self) -> int:
        """Over the number of words said: the word error rate."""
        return self.changed + self.missing + self.inserted

    def __add__(self, other: WordCounts) -> WordCounts:
        return WordCounts(
            self.right + other.right,
            self.changed + other.changed,
            self.missing + other.missing,
            self.inserted + other.inserted,
        )


def compare_words(spoken: Sequence[Sequence[str]], heard: Sequence[Sequence[str]]) -> WordCounts:
    """The words of texts, and what was heard of each: the counts of all together."""
    import jiwer

    total = WordCounts(0, 0, 0, 0)
    for said, found in zip(spoken, heard, strict=True):
        if not found:
            total += WordCounts(0, 0, len(said), 0)
            continue
        aligned = jiwer.process_words(" ".join(said), " ".join(found))
        total += WordCounts(aligned.hits, aligned.substitutions, aligned.deletions, aligned.insertions)
    return total
