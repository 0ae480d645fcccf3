"""How good is a voice? The reconstructions of its tokenizer, and the speech of its language model, on unseen sentences.

    pip install -e ".[eval,bench]"
    python benchmarks/voice_quality.py TOKENIZER          # reconstructions only
    python benchmarks/voice_quality.py MODEL [--label heart] [--count 200] [--hard 1000] [--json FILE] [--keep DIR]

The sentences are those of samples/make_voice.py: 200 of 3 to 30 words, in no training text, read by the source voice.

- STOI (0 to 1) and PESQ (wide band at 16 kHz, 1 to 4.6) compare a reconstruction with its recording.
- DNSMOS (overall, 1 to 5) judges audio alone: a network of Microsoft's that predicts what listeners say of noise and
  distortion, from the package speechmos; arXiv:2110.01763. Generated speech is compared with reconstructions.
- word_error: word error rate of pocketsphinx with its general English language model, and `inserted`, the part of it
  that are words too many. It is high for recordings, too; compare generated speech with recordings and reconstructions.
- identified: share of the sentences that pocketsphinx recognizes with a grammar of all the sentences (choices: their
  number). Words that it does not know need an alignment; without one, their sentences are left out.
- length_ratio: seconds of generated speech by seconds of the recordings. tail_seconds: silence at the end, the longest.
- hard: missing and doubled words in texts on which speech models skip, repeat or insert words (hard_sentences.py), by
  forced alignment with a separate acoustic model (word_counter.py prints its error rates). The same counts for the
  source voice are the baseline: for its recordings, and, with hibari-tts and onnx installed, for the same texts.
- paces: of 40 sentences at other speeds, the rate of speech that results, and the word error; with ffmpeg installed,
  that of recordings which its filter atempo stretches to the same speed.
- speed: on one thread, real time factor of a sentence alone, time to the first audio of a stream, and the memory that a
  paragraph of 300 words takes beyond that of its first fifth.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import tessera
from tessera.samples.voice.hibari_voice import SAMPLE_RATE as SOURCE_RATE
from tessera.samples.voice.hibari_voice import HibariVoice
from tessera.tokenize.audio.resample import resample
from tessera.tokenize.data.corpus import FolderCorpus, open_corpus
from tessera.tokenize.data.media import read_audio, write_audio
from tessera.tokenize.spec import AudioGeometry
from tessera.train.evaluation.reconstruction_metrics import pesq, stoi

sys.path.insert(0, str(Path(__file__).parent))
from hard_sentences import COUNTS, HardSentence, hard_sentences
from phones import pronunciations
from recogniser import Recogniser, SentenceRecogniser, WordCounts, compare_words, plain_words, written_words
from word_counter import CORPUS as TRAINING
from word_counter import WordCounter, WordFaults, read_recordings

CORPUS = "out/voice/corpus/test/sentences"
MOS_RATE, MOS_SECONDS, LISTENER_RATE = 16000, 9.01, 16000
QUIET = 0.003
"""Amplitude below which the end of a recording is silence."""
BATCH = 16
PACES = (0.5, 0.75, 1.25, 1.5, 2.0)
PACE_TEXTS = 40


def main() -> None:
    """Parse the command line, measure, and print a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="folder of a tokenizer or of a model, or the name of a bundled one")
    parser.add_argument("--corpus", default=CORPUS, help=f"folder of recordings ({CORPUS})")
    parser.add_argument("--count", type=int, default=200, help="recordings, spread over the corpus")
    parser.add_argument("--label", default="heart", help="voice of the model")
    parser.add_argument("--training", default=TRAINING, help=f"recordings with alignments, for `hard` ({TRAINING})")
    parser.add_argument("--hard", type=int, default=sum(COUNTS.values()), help="hard texts; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("temperature", "advance-temperature", "guidance", "speed"):
        parser.add_argument(f"--{name}", type=float, help="as of `tessera tts`")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="write reconstructions and generated speech to this folder")
    args = parser.parse_args()
    torch.set_num_threads(1)

    model = None if Path(args.target, "tokenizer.safetensors").exists() else tessera.load(args.target)
    tokenizer = tessera.load_tokenizer(args.target) if model is None else model.tokenizer
    geometry = tokenizer.spec.geometry
    assert isinstance(geometry, AudioGeometry)
    test = TestSet(args.corpus, args.count, geometry)
    rebuilt = test.rebuild(tokenizer)
    report: dict = {"recordings": len(test.sounds), "seconds": test.seconds}
    report["tokenizer"] = fidelity(rebuilt, test.sounds, geometry.sample_rate)
    sounds = {"recordings": test.sounds, "reconstructions": rebuilt}
    if model is not None:
        settings = {
            name: value
            for name in ("temperature", "advance_temperature", "guidance", "speed")
            if (value := getattr(args, name)) is not None
        }
        speaker = Speaker(model, {"label": args.label} if model.labels else {}, args.seed, settings)
        spoken = speaker.say(test.texts)
        sounds["generated"] = [result.media[0][0] for result in spoken]
        report["ended"] = sum(result.ended[0] for result in spoken) / len(spoken)
        report["length_ratio"] = sum(result.seconds for result in spoken) / test.seconds
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        for name, group in sounds.items():
            for number, sound in enumerate(group):
                write_audio(args.keep / f"{number:03d}-{name}.flac", sound.clamp(-1, 1)[None], geometry.sample_rate)
    report["tail_seconds"] = {name: max(tail(sound) for sound in group) / geometry.sample_rate
                              for name, group in sounds.items()}  # fmt: skip
    parts: list[Callable[[], dict]] = [lambda: {"dnsmos": opinions(sounds, geometry.sample_rate)}]
    if model is not None:
        parts += [
            lambda: heard(test, sounds, geometry.sample_rate),
            lambda: {"speed": speed(speaker, test.texts)},
            lambda: {"paces": paces(speaker, test)},
        ]
        if args.hard:
            parts.append(lambda: {"hard": count_words(speaker, args.training, args.label, args.hard)})
    for part in parts:  # what has been measured is kept if a later part is stopped
        report |= part()
        if args.json:
            args.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


class TestSet:
    """Recordings of sentences, spread evenly over a corpus that is sorted by length."""

    def __init__(self, path: str, count: int, geometry: AudioGeometry):
        self.corpus = open_corpus(FolderCorpus(path=path))
        order = sorted(range(len(self.corpus)), key=lambda number: len(self.text(number)))
        chosen = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
        self.numbers = [order[place] for place in chosen]
        self.texts = [self.text(number) for number in self.numbers]
        self.sounds = [self.corpus.media(number, geometry)[0] for number in self.numbers]
        self.seconds = sum(len(sound) for sound in self.sounds) / geometry.sample_rate

    def text(self, number: int) -> str:
        """The sentence of a recording."""
        text = self.corpus.item(number).text
        assert text is not None
        return text

    def rebuild(self, tokenizer) -> list[torch.Tensor]:
        """The recordings after encode and decode."""
        return [
            tokenizer.decode(tokenizer.encode(sound[None, None]).codes)[0, 0, : len(sound)] for sound in self.sounds
        ]

    def unknown_words(self, known) -> dict[str, str]:
        """Pronunciations of words that pocketsphinx does not know, from the sentences' alignments, if there are any."""
        found: dict[str, str] = {}
        for number in range(len(self.corpus)):
            timed = self.corpus.alignment(number)
            if timed is not None:
                found |= pronunciations(written_words(self.text(number)), timed.units)
        return {word: phones for word, phones in found.items() if not known(word)}


@dataclass(frozen=True)
class Speaker:
    """A model that speaks with one voice; text i has the seed of the speaker plus i."""

    model: Any
    label: dict[str, str]
    seed: int
    settings: dict

    def say(self, texts: list[str], each: int = BATCH) -> list:
        """A result for each text."""
        found = []
        for start in tqdm(range(0, len(texts), each), "speaking", unit="batch", leave=False):
            part = texts[start : start + each]
            label = {name: [value] * len(part) for name, value in self.label.items()}
            result = self.model.generate(text=part, seed=self.seed + start, **label, **self.settings)
            found += [result[number] for number in range(len(part))]
        return found

    def stream(self, text: str):
        """The chunks of a text."""
        return self.model.stream(text=text, seed=self.seed, **self.label, **self.settings)


def fidelity(made: list[torch.Tensor], recordings: list[torch.Tensor], sample_rate: int) -> dict:
    """Means of STOI and PESQ over pairs of samples [N], without those they are not defined for."""
    report: dict = {}
    for name, score in (("stoi", stoi), ("pesq", pesq)):
        scores = [score(a, b, sample_rate) for a, b in zip(made, recordings, strict=True)]
        known = [value for value in scores if value is not None]
        report[name] = statistics.mean(known)
        report[f"{name}_undefined"] = len(scores) - len(known)
    return report


def opinions(sounds: dict[str, list[torch.Tensor]], sample_rate: int) -> dict | str:
    """Mean and deviation of DNSMOS by group."""
    judge = MOSJudge.find()
    if judge is None:
        return "not measured: pip install 'tessera-lm[bench]'"
    report = {}
    for name, group in sounds.items():
        scores = [judge.overall(sound, sample_rate) for sound in group]
        report[name] = {"mean": statistics.mean(scores), "deviation": statistics.stdev(scores)}
    return report


def heard(test: TestSet, sounds: dict[str, list[torch.Tensor]], sample_rate: int) -> dict:
    """What pocketsphinx hears, by group."""
    free = Recogniser()
    added = test.unknown_words(free.knows)
    texts = {number: test.text(number) for number in range(len(test.corpus))}
    choices = [
        number
        for number, text in texts.items()
        if all(word in added or free.knows(word) for word in written_words(text))
    ]
    picker = SentenceRecogniser([texts[number] for number in choices], added)
    total = sum(len(plain_words(text)) for text in test.texts)
    asked = sum(number in choices for number in test.numbers)
    report: dict = {"word_error": {}, "inserted": {}, "identified": {}, "choices": len(choices)}
    for name, group in sounds.items():
        counts, right = WordCounts(0, 0, 0, 0), 0
        for number, text, sound in zip(
            test.numbers, test.texts, tqdm(group, f"listening to {name}", leave=False), strict=True
        ):
            samples = resample(sound[None].float(), sample_rate, LISTENER_RATE)[0].numpy()
            counts += compare_words([plain_words(text)], [free.words(samples)])
            if number in choices:
                found = picker.sentence(samples)
                right += found is not None and choices[found] == number
        report["word_error"][name] = counts.errors / total
        report["inserted"][name] = counts.inserted / total
        report["identified"][name] = right / max(asked, 1)
    return report


def paces(speaker: Speaker, test: TestSet) -> dict:
    """Rate of speech relative to the model's own, and word error, at other speeds; empty without an aligned text."""
    if speaker.model.lm.conditions.aligned is None:
        return {}
    every = max(1, len(test.texts) // PACE_TEXTS)
    texts, recordings, free = test.texts[::every], test.sounds[::every], Recogniser()
    rate = speaker.model.tokenizer.spec.geometry.sample_rate

    def word_error(sounds: list[torch.Tensor]) -> float:
        samples = [resample(sound[None].float(), rate, LISTENER_RATE)[0].numpy() for sound in sounds]
        spoken = [plain_words(text) for text in texts]
        return compare_words(spoken, [free.words(sound) for sound in samples]).errors / sum(map(len, spoken))

    own = sum(result.seconds for result in replace(speaker, settings={**speaker.settings, "speed": 1.0}).say(texts))
    report = {}
    for pace in PACES:
        spoken = replace(speaker, settings={**speaker.settings, "speed": pace}).say(texts)
        report[pace] = {
            "rate": own / sum(result.seconds for result in spoken),
            "word_error": word_error([result.media[0][0] for result in spoken]),
        }
        if shutil.which("ffmpeg"):
            report[pace]["recordings_word_error"] = word_error([at_pace(sound, rate, pace) for sound in recordings])
    return report


def at_pace(sound: torch.Tensor, sample_rate: int, pace: float) -> torch.Tensor:
    """Samples [N] at another speed and the same pitch, by ffmpeg's filter atempo."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.wav", Path(folder) / "after.wav"
        write_audio(before, sound.clamp(-1, 1)[None], sample_rate)
        command = ["ffmpeg", "-loglevel", "error", "-i", str(before), "-filter:a", f"atempo={pace}", str(after)]
        subprocess.run(command, check=True)
        return read_audio(after, sample_rate)[0]


def tail(sound: torch.Tensor) -> int:
    """Samples of silence at the end."""
    loud = (sound.abs() > QUIET).nonzero()
    return len(sound) - (int(loud[-1]) + 1 if len(loud) else 0)


def count_words(speaker: Speaker, training: str, label: str, count: int) -> dict:
    """Missing and doubled words in hard texts, by kind, and in recordings of the source voice."""
    counter = WordCounter.train(read_recordings(training, label, 200))
    report: dict = {}
    tally: Counter[tuple[str, str]] = Counter()
    for samples, timed in read_recordings(training, label, 100, skip=200):
        add(tally, "recordings", counter.judge(samples, timed.units))
    share = count / sum(COUNTS.values())
    texts = hard_sentences(speaker.seed, {kind: max(1, round(share * each)) for kind, each in COUNTS.items()})
    rate = speaker.model.tokenizer.spec.geometry.sample_rate
    for item, result in zip(texts, speaker.say([item.text for item in texts]), strict=True):
        samples = resample(result.media[0].float(), rate, LISTENER_RATE)[0]
        add(tally, item.kind, counter.judge(samples, speaker.model.text.units(item.text)))
        tally[item.kind, "did not end"] += not result.ended[0]
    for kind, found in source_faults(counter, texts):
        add(tally, f"{kind}, source voice", found)
    for (kind, name), value in tally.items():
        report.setdefault(kind, {})[name] = value
    return report


def source_faults(counter: WordCounter, texts: list[HardSentence]) -> Iterator[tuple[str, WordFaults]]:
    """What the counter finds in the source voice reading the texts, by sentences; nothing without hibari-tts."""
    try:
        voice = HibariVoice()
    except ImportError:
        return
    for item in tqdm(texts, "source voice", unit="text", leave=False):
        read = [voice.speak(sentence, 0) for sentence in re.split(r"(?<=[.?!]) ", item.text)]
        parts = [part for part in read if part is not None]
        if len(parts) == len(read):
            sound = torch.cat([torch.as_tensor(samples, dtype=torch.float32) for samples, _ in parts])
            units = [unit for _, timed in parts for unit in timed.units]
            yield item.kind, counter.judge(resample(sound[None], SOURCE_RATE, LISTENER_RATE)[0], units)


def add(tally: Counter[tuple[str, str]], kind: str, found) -> None:
    """Count the faults of a text."""
    for name, value in (
        ("texts", 1),
        ("words", found.words),
        ("missing", len(found.missing)),
        ("doubled", len(found.doubled)),
    ):
        tally[kind, name] += value


def speed(speaker: Speaker, texts: list[str]) -> dict:
    """Of single sentences on one thread; medians of five sentences of middle length, and of a paragraph."""
    middle = texts[len(texts) // 2 - 2 : len(texts) // 2 + 3]
    speaker.say(middle[:1], 1)
    factors, firsts = [], []
    for text in middle:
        started = time.perf_counter()
        result = speaker.say([text], 1)[0]
        factors.append((time.perf_counter() - started) / result.seconds)
        started = time.perf_counter()
        next(iter(speaker.stream(text)))
        firsts.append(time.perf_counter() - started)
    paragraph = hard_sentences(speaker.seed, {"paragraphs": 1})[0].text
    peaks, samples, started = [], 0, time.perf_counter()
    for chunk in speaker.stream(paragraph):
        samples += chunk.shape[-1]
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    seconds = samples / speaker.model.tokenizer.spec.geometry.sample_rate
    return {
        "real_time_factor": statistics.median(factors),
        "first_audio_seconds": statistics.median(firsts),
        "paragraph_words": len(paragraph.split()),
        "paragraph_seconds": seconds,
        "paragraph_real_time_factor": (time.perf_counter() - started) / seconds,
        "paragraph_more_megabytes": peaks[-1] - peaks[len(peaks) // 5],
    }


class MOSJudge:
    """The network "sig_bak_ovr" of DNSMOS P.835, run as speechmos runs it, without the packages that it imports."""

    def __init__(self, model: Path):
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    @classmethod
    def find(cls) -> MOSJudge | None:
        """The judge, or None if speechmos or onnxruntime is not installed."""
        home = find_spec("speechmos")
        if home is None or not home.submodule_search_locations or find_spec("onnxruntime") is None:
            return None
        return cls(Path(home.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx")

    def overall(self, samples: torch.Tensor, sample_rate: int) -> float:
        """Overall score of samples [N]: mean over windows of 9.01 s, one second apart; short audio is repeated."""
        sound = resample(samples[None].float().clamp(-1, 1), sample_rate, MOS_RATE)[0].clamp(-1, 1).numpy()
        size = int(MOS_SECONDS * MOS_RATE)
        while len(sound) < size:
            sound = np.append(sound, sound)
        starts = [second * MOS_RATE for second in range(int(len(sound) // MOS_RATE - MOS_SECONDS) + 1)]
        scores = [self.session.run(None, {"input_1": sound[None, at : at + size]})[0][0][2] for at in starts]
        return statistics.mean(float(np.polyval([-0.06766283, 1.11546468, 0.04602535], score)) for score in scores)


if __name__ == "__main__":
    main()
