"""Find words of a text that are missing in a recording, or said twice, by forced alignment.

    python benchmarks/word_counter.py [CORPUS]

The acoustic model is one Gaussian per phoneme (train/align), estimated from recordings of the corpus with their known
alignments; it is independent of the language model under test. After alignment, the frames of each word and its
neighbors are scored with three transcripts: `before word after`, `before after` (missing) and `before word word after`
(doubled). Another transcript than the first is chosen if its log-likelihood is higher by more than MARGIN.

Run as a script, it prints the error rates of this test: false alarms on held-out recordings, and the share of words
found that were cut out of a recording, or put in twice.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from phones import PHONES

from tessera.tokenize.alignment.alignment import TimedUnits
from tessera.tokenize.data.corpus import FolderCorpus, open_corpus
from tessera.tokenize.spec import AudioGeometry
from tessera.tokenize.text.units import WORD_BOUNDARY, is_silent
from tessera.train.align.acoustic_model import Scale, Utterance, measure_scale
from tessera.train.align.cepstra import FRAMES_PER_SECOND, HOP, SAMPLE_RATE, cepstra
from tessera.train.align.gaussians import Gaussians, GaussianSums
from tessera.train.align.paths import best_paths, path_batch
from tessera.train.align.unit_graph import SoundTable, unit_graph

CORPUS = "out/voice/corpus/train"
GEOMETRY = AudioGeometry(sample_rate=SAMPLE_RATE, samples_per_frame=HOP)
ENTER = 1.0
"""Penalty for each state that a path enters, in nats."""
FEWEST = 2
"""Minimum duration of a phoneme, in frames of 10 ms."""
MARGIN = 10.0
"""In nats."""


@dataclass(frozen=True)
class WordFaults:
    """Words of a recording that are not said exactly once."""

    words: int
    missing: tuple[int, ...]
    """Numbers of words that were left out."""
    doubled: tuple[int, ...]
    """Numbers of words that were said twice, or with something of their sound beside them."""


@dataclass(frozen=True)
class Word:
    """A word on the path of its recording."""

    units: tuple[str, ...]
    start: int
    end: int
    """Frames."""


class WordCounter:
    """Checks recordings at 16 kHz against their units."""

    def __init__(self, model: Gaussians, scale: Scale, table: SoundTable):
        self.model, self.scale, self.table = model, scale, table

    @classmethod
    def train(cls, recordings: Sequence[tuple[torch.Tensor, TimedUnits]]) -> WordCounter:
        """Estimate the model from recordings [N] at 16 kHz with their alignments.

        A phoneme that no recording has keeps the prior (gaussians.py).
        """
        table = SoundTable([[*PHONES, WORD_BOUNDARY]])
        utterances = [Utterance(cepstra(samples), unit_graph(timed.units, table)) for samples, timed in recordings]
        scale = measure_scale(utterances)
        sums = GaussianSums(len(table))
        one_hot = np.eye(len(table), dtype=np.float32)
        for utterance, (_, timed) in zip(utterances, recordings, strict=True):
            ends = np.round(np.array(timed.boundaries[1:]) * FRAMES_PER_SECOND).astype(int)
            labels = np.zeros(len(utterance.cepstra), int)
            for unit, start, end in zip(timed.units, [0, *ends[:-1]], ends, strict=True):
                labels[start:end] = table.number(unit)
            sums.add(scale.apply(utterance.cepstra), one_hot[labels])
        return cls(sums.estimate(), scale, table)

    def judge(self, samples: torch.Tensor, units: Sequence[str]) -> WordFaults:
        """Find missing and doubled words.

        Args:
            samples: [N] at 16 kHz. units: phonemes, marks and boundaries, which begin and end with a boundary.
        """
        scores = self.model.scores(self.scale.apply(cepstra(samples)))
        words = self.align(scores, units)
        missing, doubled = [], []
        for number, word in enumerate(words):
            before, after = words[:number][-1:], words[number + 1 :][:1]
            start = before[0].start if before else 0
            end = after[0].end if after else len(scores)
            part = scores[start:end]
            as_written = self._likelihood(part, [*before, word, *after])
            if (before or after) and self._likelihood(part, [*before, *after]) > as_written + MARGIN:
                missing.append(number)
            elif self._likelihood(part, [*before, word, word, *after]) > as_written + MARGIN:
                doubled.append(number)
        return WordFaults(len(words), tuple(missing), tuple(doubled))

    def align(self, scores: np.ndarray, units: Sequence[str]) -> list[Word]:
        """The words of units with their frames on the best path through scores [T, sounds]."""
        graph = unit_graph(units, self.table)
        path = best_paths(path_batch([scores], [graph]))[0]
        owners = graph.units[path]
        words: list[Word] = []
        open_word: list[int] = []
        for number, unit in enumerate([*units, WORD_BOUNDARY]):
            if not is_silent(unit):
                open_word.append(number)
            elif open_word and unit == WORD_BOUNDARY:
                frames = np.flatnonzero(np.isin(owners, open_word))
                words.append(Word(tuple(units[place] for place in open_word), int(frames[0]), int(frames[-1]) + 1))
                open_word = []
        return words

    def _likelihood(self, scores: np.ndarray, words: Sequence[Word]) -> float:
        """Log-likelihood of scores [T, sounds] on the best path through words; -inf: they are too long."""
        held = [(*(unit for unit in word.units for _ in range(FEWEST)), WORD_BOUNDARY) for word in words]
        units = [WORD_BOUNDARY, *(unit for word in held for unit in word)]
        graph = unit_graph(units, self.table)
        if graph.fewest_frames > len(scores):
            return -np.inf
        path = best_paths(path_batch([scores], [graph]))[0]
        entered = np.count_nonzero(np.diff(path)) + 1
        return float(scores[np.arange(len(path)), graph.sounds[path]].sum()) - ENTER * entered


def read_recordings(path: str, label: str, count: int, skip: int = 0) -> list[tuple[torch.Tensor, TimedUnits]]:
    """Recordings of a corpus with a label, at 16 kHz, with their alignments."""
    corpus = open_corpus(FolderCorpus(path=path))
    numbers = [number for number in range(len(corpus)) if corpus.item(number).label == label][skip : skip + count]
    found = []
    for number in numbers:
        timed = corpus.alignment(number)
        assert timed is not None, f"{path}: needs alignments"
        found.append((corpus.media(number, GEOMETRY)[0], timed))
    return found


def main() -> None:
    """Print the error rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", default=CORPUS)
    parser.add_argument("--label", default="heart")
    parser.add_argument("--count", type=int, default=200, help="recordings for training, and as many for testing")
    args = parser.parse_args()
    counter = WordCounter.train(read_recordings(args.corpus, args.label, args.count))
    chance = random.Random(0)
    words = missing = doubled = cut = cut_found = repeated = repeated_found = 0
    for samples, timed in read_recordings(args.corpus, args.label, args.count, skip=args.count):
        found = counter.judge(samples, timed.units)
        words, missing, doubled = words + found.words, missing + len(found.missing), doubled + len(found.doubled)
        spans = counter.align(counter.model.scores(counter.scale.apply(cepstra(samples))), timed.units)
        if len(spans) < 3:
            continue
        number = chance.randrange(1, len(spans) - 1)
        start, end = spans[number].start * HOP, spans[number].end * HOP
        left_out = counter.judge(torch.cat([samples[:start], samples[end:]]), timed.units)
        cut, cut_found = cut + 1, cut_found + bool({number - 1, number, number + 1} & {*left_out.missing})
        twice = counter.judge(torch.cat([samples[:end], samples[start:]]), timed.units)
        repeated, repeated_found = (
            repeated + 1,
            repeated_found + bool({number - 1, number, number + 1} & {*twice.doubled}),
        )
    report = {
        "words": words,
        "called missing": missing,
        "called doubled": doubled,
        "cut out and found": f"{cut_found} of {cut}",
        "put in twice and found": f"{repeated_found} of {repeated}",
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
