"""Recordings as a user has them: half an hour of one voice as WAV and TXT files, to try configs/own-speech on.

    apt install flite wordnet-base
    python benchmarks/own_recordings.py out/own --minutes 30      # out/own/recordings and out/own/unseen
    (the commands of README.md, "Train on your own data", with out/own/recordings instead of recordings)
    python benchmarks/voice_quality.py runs/speech/lm/model --corpus out/own/unseen --hard 0

flite reads sentences of WordNet; what it knows about durations is not written. `unseen`: other sentences, of 3 to 30
words, all of them known to pocketsphinx. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from tessera.samples.voice.sentences import Texts, held_out, plain
from tessera.samples.voice.wordnet import read_wordnet
from tessera.tokenize.data.media import read_audio

sys.path.insert(0, str(Path(__file__).parent))
from recogniser import Recogniser, written_words

SAMPLE_RATE = 16000


def main() -> None:
    """Parse the command line and make both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--minutes", type=float, default=30.0, help="speech in `recordings`")
    parser.add_argument("--unseen", type=int, default=100, help="sentences in `unseen`")
    parser.add_argument("--voice", default="slt", help="as `flite -lv` lists them")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source, knows = read_wordnet(), Recogniser().knows
    unseen = [
        text for text in held_out(source, arguments.seed, 4 * arguments.unseen) if all(map(knows, written_words(text)))
    ]
    unseen = unseen[: arguments.unseen]
    for number, text in enumerate(tqdm(unseen, "unseen", unit="file")):
        record(text, arguments.voice, arguments.out / "unseen" / f"{number:04d}.wav")
    texts = Texts(source, arguments.seed, {plain(text) for text in unseen})
    left, number = arguments.minutes * 60, 0
    with tqdm(total=round(left), desc="recordings", unit="s") as bar:
        while left > 0:
            seconds = record(texts.next(), arguments.voice, arguments.out / "recordings" / f"{number:05d}.wav")
            left, number = left - seconds, number + 1
            bar.update(round(seconds))


def record(text: str, voice: str, path: Path) -> float:
    """Write a text's WAV and TXT; returns seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["flite", "-voice", voice, "-o", str(path), "-t", f" {text} "], check=True)
    path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    return read_audio(path, SAMPLE_RATE).shape[-1] / SAMPLE_RATE


if __name__ == "__main__":
    main()
