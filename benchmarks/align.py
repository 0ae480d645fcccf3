"""How far are the boundaries that `tessera align` finds from known ones?

    python -m tessera.samples.make_voice --out out/align --hours heart=0.5,slt=0.5
    python benchmarks/align.py out/align/train/slt
    python benchmarks/align.py out/align/train/slt --noise --text characters

CORPUS is a folder of recordings with known alignments (NAME.align). They are hidden from the aligner, which gets the
recordings and their transcripts: the phonemes of the known alignment, or the text as written, of which only the
boundaries of words are compared. --noise adds up to a second of pause at each end and white noise, 20 dB below the
speech. --wrong exchanges the transcripts of some recordings and counts how many of them have the lowest scores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tessera.tokenize.alignment.alignment import TimedUnits
from tessera.tokenize.alignment.alignment_file import read_alignment
from tessera.tokenize.data.corpus import FolderCorpus, open_corpus
from tessera.tokenize.data.media import write_audio
from tessera.tokenize.text.character_text import CharacterTextConfig
from tessera.tokenize.text.phoneme_text import PhonemeTextConfig
from tessera.tokenize.text.units import WORD_BOUNDARY, is_silent
from tessera.train.align.aligner import GEOMETRY, align_corpus
from tessera.train.align.cepstra import SAMPLE_RATE
from tessera.train.align.config import AlignConfig

TEXTS = {"phonemes": PhonemeTextConfig, "characters": CharacterTextConfig}


def main() -> None:
    """Make a corpus without alignments, align it, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder of recordings with known alignments")
    parser.add_argument("--minutes", type=float, default=30.0, help="speech to use")
    parser.add_argument("--text", choices=list(TEXTS), default="phonemes")
    parser.add_argument("--noise", action="store_true", help="pauses at the ends and white noise at 20 dB")
    parser.add_argument("--wrong", type=int, default=0, help="recordings whose transcripts are exchanged")
    parser.add_argument("--iterations", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        known, wrong = make_corpus(arguments, Path(folder) / "in")
        config = AlignConfig(
            corpus=FolderCorpus(path=f"{folder}/in"),
            text=TEXTS[arguments.text](),
            out=f"{folder}/out",
            iterations=arguments.iterations,
        )
        wall, processor = time.monotonic(), time.process_time()
        report = align_corpus(config)
        wall, processor = time.monotonic() - wall, time.process_time() - processor
        errors, different = [], 0
        for name, timed in known.items():
            path = Path(folder) / "out" / f"{name}.align"
            if f"{name}.wav" in wrong or not path.exists():
                continue
            pairs = compare(timed, read_alignment(path.read_bytes(), ".align"), arguments.text == "characters")
            different += pairs is None
            errors += pairs or []
    found = summarize(np.array(errors))
    lowest = {item.id for item in report.items[: len(wrong)]}
    found |= {
        "items": len(report.items),
        "skipped": len(report.skipped),
        "other units": different,
        "minutes": round(sum(item.seconds for item in report.items) / 60, 1),
        "processor seconds": round(processor),
        "wall seconds": round(wall),
        "wrong transcripts among the lowest scores": f"{len(lowest & wrong)} of {len(wrong)}",
    }
    print(json.dumps(found, indent=1))


def make_corpus(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, TimedUnits], set[str]]:
    """Write WAV and TXT of recordings; returns their known alignments, and those whose transcripts are exchanged."""
    corpus = open_corpus(FolderCorpus(path=arguments.corpus))
    generator = np.random.default_rng(0)
    known: dict[str, TimedUnits] = {}
    texts: dict[str, str] = {}
    seconds = 0.0
    for number in range(len(corpus)):
        timed, text = corpus.alignment(number), corpus.item(number).text
        if timed is None or (text is None and arguments.text == "characters"):
            continue
        if seconds > 60 * arguments.minutes:
            break
        samples = corpus.media(number, GEOMETRY)
        if arguments.noise:
            samples, timed = disturb(samples, timed, generator)
        name = f"{number:06d}"
        write_audio(folder / f"{name}.wav", samples, SAMPLE_RATE)
        known[name] = timed
        phonemes = "".join(timed.units).replace(WORD_BOUNDARY, " ").strip()
        texts[name] = text if text and arguments.text == "characters" else f"[[{phonemes}]]"
        seconds += samples.shape[1] / SAMPLE_RATE
    chosen = generator.permutation(sorted(texts))[: arguments.wrong].tolist()
    moved = {name: texts[other] for name, other in zip(chosen, chosen[1:] + chosen[:1], strict=True)}
    for name, text in (texts | moved).items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return known, {f"{name}.wav" for name in chosen}


def disturb(
    samples: torch.Tensor, timed: TimedUnits, generator: np.random.Generator
) -> tuple[torch.Tensor, TimedUnits]:
    """Up to a second of pause at each end of samples [1, N], and white noise at 20 dB."""
    before, after = (generator.uniform(0, 1, 2) * SAMPLE_RATE).astype(int).tolist()
    level = samples.square().mean().sqrt() / 10
    longer = torch.nn.functional.pad(samples, (before, after))
    longer = longer + level * torch.from_numpy(generator.standard_normal(longer.shape)).float()
    inner = [time + before / SAMPLE_RATE for time in timed.boundaries[1:-1]]
    return longer.clamp(-1, 1), TimedUnits(timed.units, (0.0, *inner, longer.shape[1] / SAMPLE_RATE))


def compare(known: TimedUnits, found: TimedUnits, words: bool) -> list[float] | None:
    """Errors in seconds of the begin of each sounding unit, or word, and of its end where a silent unit follows.

    None: the units, or the numbers of words, differ.
    """
    parts = [sounding_parts(timed, words) for timed in (known, found)]
    if len(parts[0]) != len(parts[1]):
        return None
    errors = []
    for (name, start, end, last), (other, begin, stop, _) in zip(*parts, strict=True):
        if not words and name != other:
            return None
        errors.append(begin - start)
        if last:
            errors.append(stop - end)
    return errors


def sounding_parts(timed: TimedUnits, words: bool) -> list[tuple[str, float, float, bool]]:
    """Sounding units, or words: unit, start, end, and whether a silent unit follows."""
    parts: list[tuple[str, float, float, bool]] = []
    open_word = False
    for place, unit in enumerate(timed.units):
        start, end = timed.boundaries[place : place + 2]
        if is_silent(unit):
            open_word = open_word and unit != WORD_BOUNDARY
            continue
        last = is_silent(timed.units[place + 1])
        if words and open_word:
            parts[-1] = (parts[-1][0], parts[-1][1], end, True)
        else:
            parts.append((unit, start, end, last or words))
        open_word = True
    return parts


def summarize(errors: np.ndarray) -> dict[str, float | int | str]:
    """Figures of errors in seconds, in milliseconds and percent."""
    size = np.abs(errors)
    return {
        "boundaries": len(errors),
        "mean absolute error, ms": round(1000 * size.mean(), 1),
        "median, ms": round(1000 * float(np.median(size)), 1),
        "bias, ms": round(1000 * errors.mean(), 1),
        "within 30 ms, %": round(100 * (size < 0.03).mean(), 1),
        "within 75 ms, %": round(100 * (size < 0.075).mean(), 1),
        "largest, ms": round(1000 * size.max()),
    }


if __name__ == "__main__":
    main()
