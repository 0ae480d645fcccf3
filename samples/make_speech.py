"""Make spoken digit strings and short phrases with espeak-ng (Debian: apt install espeak-ng).

The sets in this folder were made by

    python -m tessera.samples.make_speech --count 100 --seed 0 --unique --phrases 0 --lengths 3,17,25,27,28 \
        --out samples/speech/test
    python -m tessera.samples.make_speech --count 240 --seed 2 --exclude samples/speech/test/metadata.jsonl \
        --out samples/speech/train

and more is made by another --count, or by --words FILE (one word a line) instead of digits. A folder holds 00000.flac,
... (16 kHz mono) and metadata.jsonl with one line a file: {"file", "text", "label"}; the label is the voice.

No string of the test set occurs in a set made with --exclude. Ten strings of one digit exist, so three of them
("three", "seven" and "eight") are test strings that training hears only inside longer strings; the same holds for 17 of
the 100 pairs. "oh" is not used for zero.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = ("en-us", "en-us+m3", "en-us+f2", "en-us+f4")
SLOWEST, FASTEST = 100, 140
"""Words per minute, drawn for each utterance."""
AMPLITUDE = 50
"""Of 200: peaks near 0.5, far from clipping after resampling."""
SAMPLE_RATE = 16000
EDGE_SECONDS = 0.08
"""Silence kept before and after the speech."""
MAX_TRIES = 10_000

PHRASES = (
    "good morning",
    "good evening",
    "good night",
    "thank you very much",
    "you are welcome",
    "how are you today",
    "i am fine",
    "nice to meet you",
    "see you tomorrow",
    "have a nice day",
    "the weather is fine",
    "it is raining again",
    "the sun is shining",
    "what time is it",
    "where is the station",
    "the train is late",
    "please open the door",
    "please close the window",
    "turn on the light",
    "turn off the radio",
    "i would like some tea",
    "a cup of coffee please",
    "the soup is too hot",
    "dinner is ready",
    "can you help me",
    "i do not know",
    "that is a good idea",
    "wait a moment",
    "come with me",
    "look at the sky",
    "listen to the music",
    "the cat is asleep",
    "the dog wants to play",
    "my house is small",
    "the river is deep",
    "read me a story",
    "write it down",
    "speak more slowly",
    "happy birthday to you",
    "welcome home",
)


@dataclass(frozen=True)
class Utterance:
    """One file to be spoken."""

    file: str
    text: str
    voice: str
    words_per_minute: int


def main() -> None:
    """Read the command line, draw the strings, speak them, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=240, help="utterances to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--words", type=Path, help="file with one word a line, in place of the digits; no phrases then")
    parser.add_argument(
        "--exclude", type=Path, action="append", default=[], help="metadata.jsonl of texts that must not occur"
    )
    parser.add_argument("--voices", nargs="+", default=list(VOICES), help="espeak-ng voices, also the labels")
    parser.add_argument("--phrases", type=float, help="share of everyday phrases (0.2; 0 with --words)")
    parser.add_argument("--lengths", default="1,2,3,3,3", help="shares of strings of 1, 2, 3, ... words")
    parser.add_argument("--unique", action="store_true", help="no text twice")
    parser.add_argument("--processes", type=int, default=1, help="espeak-ng processes at once")
    arguments = parser.parse_args()

    words = read_words(arguments.words) if arguments.words else DIGITS
    phrase_share = arguments.phrases if arguments.phrases is not None else (0.0 if arguments.words else 0.2)
    excluded = {json.loads(line)["text"] for path in arguments.exclude for line in path.read_text().splitlines()}
    draw = random.Random(arguments.seed)
    texts = draw_texts(
        draw,
        arguments.count,
        words,
        lengths=[float(share) for share in arguments.lengths.split(",")],
        phrase_share=phrase_share,
        excluded=excluded,
        unique=arguments.unique,
    )
    speak_all(plan_utterances(draw, texts, arguments.voices), arguments.out, arguments.processes)


def read_words(path: Path) -> tuple[str, ...]:
    """Words of a file, one a line, blank lines left out."""
    words = tuple(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))
    if not words:
        raise ValueError(f"{path}: no words in it; write one word a line")
    return words


def draw_texts(
    draw: random.Random,
    count: int,
    words: Sequence[str],
    lengths: Sequence[float],
    phrase_share: float,
    excluded: set[str],
    unique: bool,
) -> list[str]:
    """Draw `count` texts in random order, every word and every pair of words about equally often.

    Args:
        words: strings are made of these; the next word is one of those seen least after the word before.
        lengths: shares of strings of 1, 2, ... words, met exactly up to rounding.
        phrase_share: share of texts taken from PHRASES.
        excluded: texts that must not occur.
        unique: no text twice.
    Raises:
        ValueError: not enough different strings exist.
    """
    num_phrases = round(count * phrase_share)
    sizes = _apportion(count - num_phrases, lengths)
    allowed_phrases = [phrase for phrase in PHRASES if phrase not in excluded]
    texts = [allowed_phrases[i % len(allowed_phrases)] for i in range(num_phrases)]
    seen: set[str] = set(excluded)
    pairs: Counter[tuple[str, str]] = Counter()
    for size, number in enumerate(sizes, start=1):
        for _ in range(number):
            for _ in range(MAX_TRIES):
                chosen = _draw_string(draw, words, size, pairs)
                pairs.update(
                    zip(("", *chosen), chosen, strict=False)
                )  # of a refused one too, or it comes again and again
                if " ".join(chosen) not in seen:
                    break
            else:
                raise ValueError(f"no string of {size} words is left that is not excluded; ask for fewer or add words")
            texts.append(" ".join(chosen))
            if unique:
                seen.add(texts[-1])
    draw.shuffle(texts)
    return texts


def _draw_string(draw: random.Random, words: Sequence[str], size: int, pairs: Counter[tuple[str, str]]) -> list[str]:
    """One string of `size` words; each word is drawn with probability falling with the count of the pair it makes."""
    chosen = [""]
    for _ in range(size):
        counts = [pairs[chosen[-1], word] for word in words]
        least = min(counts)
        chosen.append(draw.choices(words, weights=[0.25 ** (count - least) for count in counts])[0])
    return chosen[1:]


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Split a whole number by shares, largest remainders first."""
    exact = [total * share / sum(shares) for share in shares]
    parts = [int(value) for value in exact]
    for index in sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])[: total - sum(parts)]:
        parts[index] += 1
    return parts


def plan_utterances(draw: random.Random, texts: Sequence[str], voices: Sequence[str]) -> list[Utterance]:
    """Give each text a voice (equally often) and a speed."""
    order = [voices[i % len(voices)] for i in range(len(texts))]
    draw.shuffle(order)
    return [
        Utterance(f"{i:05d}.flac", text, voice, draw.randint(SLOWEST, FASTEST))
        for i, (text, voice) in enumerate(zip(texts, order, strict=True))
    ]


def speak_all(utterances: Sequence[Utterance], out: Path, processes: int = 1) -> None:
    """Speak every utterance into `out` and write metadata.jsonl last.

    Raises:
        FileExistsError: `out` holds something already.
    """
    from tqdm import tqdm

    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another --out or remove it")
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool:
        spoken = pool.map(lambda utterance: speak(utterance, out), utterances)
        for _ in tqdm(spoken, total=len(utterances), desc="speaking", unit="file", file=sys.stderr, disable=None):
            pass
    lines = [json.dumps({"file": u.file, "text": u.text, "label": u.voice}) for u in utterances]
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def speak(utterance: Utterance, out: Path) -> None:
    """Write one utterance as 16 kHz mono FLAC.

    Raises:
        FileNotFoundError: espeak-ng is not installed. ValueError: it failed, or said nothing.
    """
    from ..tokenize.data.media import read_audio, write_audio

    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "spoken.wav"
        manner = ["-v", utterance.voice, "-s", str(utterance.words_per_minute), "-a", str(AMPLITUDE)]
        command = ["espeak-ng", *manner, "-w", str(wav), "--", utterance.text]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise FileNotFoundError("espeak-ng is not installed; on Debian: apt install espeak-ng") from None
        if done.returncode != 0 or not wav.exists():
            raise ValueError(f"espeak-ng failed on {utterance}: {done.stderr.strip()}")
        spoken = read_audio(wav, SAMPLE_RATE)
    write_audio(out / utterance.file, trim(spoken[0], utterance.text)[None], SAMPLE_RATE)


def trim(samples, text: str):
    """Cut a waveform [N] to the speech (10 ms steps above 1 % of the peak) and EDGE_SECONDS of quiet on both sides."""
    import torch

    edge, step = int(EDGE_SECONDS * SAMPLE_RATE), SAMPLE_RATE // 100
    steps = torch.nn.functional.pad(samples, (0, -len(samples) % step)).reshape(-1, step).abs().amax(1)
    loud = (steps > 0.01 * steps.max()).nonzero()
    if not len(loud) or float(steps.max()) < 0.01:
        raise ValueError(f"espeak-ng said nothing for '{text}'; is it a word in this voice's language?")
    first, last = int(loud[0]) * step, (int(loud[-1]) + 1) * step
    return torch.nn.functional.pad(samples, (edge, edge))[first : last + 2 * edge].clamp(-1, 1)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f"make_speech: {error}")
