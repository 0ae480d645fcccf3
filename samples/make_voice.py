"""Make the corpus of an English voice: English sentences read by four synthesized voices, with the exact
duration of each phoneme.

    apt install wordnet-base flite && pip install hibari-tts onnx
    python -m tessera.samples.make_voice --out out/voice/corpus

| voice | synthesizer | hours | licence |
|---|---|---|---|
| heart | hibari-tts, distilled from Kokoro-82M's af_heart | 12 | Apache-2.0 |
| slt, rms, awb | flite, from recordings of CMU ARCTIC | 2 each | CMU, as BSD |

The sentences are examples and definitions of WordNet 3.0 (WordNet licence), and generated ones: questions, lists,
numbers, dates, names, letters, repeated words. The same seed gives the same corpus. About an hour on one CPU core; a
run that was stopped continues.

    out/train            24 kHz FLAC, NAME.align beside each file (start, end, unit), metadata.jsonl {file, text, label}
    out/test/sentences   200 sentences of 3 to 30 words, voice heart; in no training text, not even as a part
    out/test/items       300 texts of all kinds and voices, none of them a training text
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .voice.alignment import label_track
from .voice.flite_voice import FLITE_VOICES, speak_flite
from .voice.hibari_voice import SAMPLE_RATE, HibariVoice
from .voice.sentences import Texts, estimated_seconds, held_out, plain
from .voice.wordnet import WORDNET, WordNet, read_wordnet

VOICES = ("heart", *FLITE_VOICES)
HOURS = "heart=12,slt=2,rms=2,awb=2"
TEST_SENTENCES = 200
TEST_ITEMS = {"heart": 120, "slt": 60, "rms": 60, "awb": 60}


@dataclass(frozen=True)
class Recording:
    """A file to make."""

    folder: str
    """Below the output folder; it has a metadata.jsonl of its own."""
    file: str
    text: str
    voice: str


def main() -> None:
    """Parse the command line, plan the recordings, make them, and write the tables of files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or to continue")
    parser.add_argument("--hours", default=HOURS, help=f"hours of training audio by voice ({HOURS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="recordings made at once")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="folder of WordNet's database")
    arguments = parser.parse_args()
    recordings = plan_recordings(read_wordnet(arguments.wordnet), parse_hours(arguments.hours), arguments.seed)
    speak_all(recordings, arguments.out, arguments.processes)


def parse_hours(given: str) -> dict[str, float]:
    """Hours by voice from "heart=12,slt=2". Raises ValueError."""
    hours = {}
    for part in given.split(","):
        voice, equals, amount = part.partition("=")
        if voice not in VOICES or not equals or not amount.replace(".", "", 1).isdigit():
            raise ValueError(f"--hours: '{part}' is not VOICE=HOURS; voices are {', '.join(VOICES)}")
        hours[voice] = float(amount)
    return hours


def plan_recordings(source: WordNet, hours: dict[str, float], seed: int) -> list[Recording]:
    """Texts of all recordings. Voices take turns, so that the beginning of the list is a small corpus."""
    sentences = held_out(source, seed, TEST_SENTENCES)
    texts = Texts(source, seed, {plain(text) for text in sentences})
    made = [Recording("test/sentences", f"{i:03d}.flac", text, "heart") for i, text in enumerate(sentences)]
    for voice, count in TEST_ITEMS.items():
        if hours.get(voice):
            made += [Recording("test/items", f"{voice}-{i:03d}.flac", texts.next(), voice) for i in range(count)]
    left = {voice: 3600 * amount for voice, amount in hours.items()}
    counts = dict.fromkeys(left, 0)
    while any(seconds > 0 for seconds in left.values()):
        voice = max(left, key=lambda name: left[name] / hours[name] if hours[name] else 0)
        text = texts.next()
        made.append(Recording("train", f"{voice}/{counts[voice]:05d}.flac", text, voice))
        counts[voice] += 1
        left[voice] -= estimated_seconds(text)
    return made


def speak_all(recordings: list[Recording], out: Path, processes: int = 1) -> None:
    """Make every recording that does not exist, then write metadata.jsonl of each folder."""
    from tqdm import tqdm

    for parent in {(out / each.folder / each.file).parent for each in recordings}:
        parent.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    show = {"total": len(recordings), "desc": "speaking", "unit": "file", "file": sys.stderr, "disable": None}
    for each, made in tqdm(zip(recordings, _spoken(recordings, out, processes), strict=True), **show):
        if made:
            line = {"file": each.file, "text": each.text, "label": each.voice}
            lines.setdefault(each.folder, []).append(json.dumps(line, ensure_ascii=False))
    for folder, listed in lines.items():
        (out / folder / "metadata.jsonl").write_text("\n".join(listed) + "\n", encoding="utf-8")
    print(f"{sum(map(len, lines.values()))} of {len(recordings)} texts were read as expected", file=sys.stderr)


def _spoken(recordings: Iterable[Recording], out: Path, processes: int) -> Iterator[bool]:
    if processes == 1:
        speaker = Speaker(out)
        yield from map(speaker.make, recordings)
        return
    with ProcessPoolExecutor(processes, initializer=_start_worker, initargs=(out,)) as pool:
        yield from pool.map(_make_in_worker, recordings, chunksize=8)


class Speaker:
    """Makes recordings below a folder."""

    def __init__(self, out: Path):
        self.out, self.hibari = out, HibariVoice()

    def make(self, recording: Recording) -> bool:
        """Make a recording unless it exists; False if its text was not read as expected."""
        import torch

        from ..tokenize.data.media import write_audio

        path = self.out / recording.folder / recording.file
        track = path.with_suffix(".align")
        if track.exists() and path.exists():
            return True
        if recording.voice == "heart":
            spoken = self.hibari.speak(recording.text, zlib.crc32(recording.text.encode()))
        else:
            phonemes = self.hibari.phonemes(recording.text)
            spoken = phonemes and speak_flite(recording.text, phonemes, recording.voice)
        if not spoken:
            return False
        samples, alignment = spoken
        write_audio(path, torch.from_numpy(samples).clamp(-1, 1)[None], SAMPLE_RATE)
        track.write_text(label_track(alignment), encoding="utf-8")
        return True


_worker: list[Speaker] = []


def _start_worker(out: Path) -> None:
    _worker.append(Speaker(out))


def _make_in_worker(recording: Recording) -> bool:
    return _worker[0].make(recording)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, FileNotFoundError) as error:
        sys.exit(f"make_voice: {error}")
