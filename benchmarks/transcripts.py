"""How well does a model with a text stream write down speech? Word errors on recordings with known texts, and how long
it takes.

    python benchmarks/transcripts.py MODEL [--corpus DIR] [--spoken] [--no-label]
        [--count N] [--batch N] [--json FILE]

- word_error: words exchanged, left out and put in, per word of the texts.
- whole: share of the texts written without an error.
- pocketsphinx: the word error of an outside recogniser with a digit grammar, on the same sound.
- --spoken: instead of the recordings, what the model itself says of their texts.
- --no-label: the model is not told the voice.
- --corpus: other recordings with metadata.jsonl, as samples/make_speech.py makes them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from operator import eq
from pathlib import Path

import soundfile
import torch

import tessera

sys.path.insert(0, str(Path(__file__).parent))
from recogniser import DigitRecogniser, compare_words

TEST = Path(__file__).parent.parent / "samples" / "speech" / "test"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--corpus", type=Path, default=TEST, help="folder of recordings with metadata.jsonl")
    parser.add_argument("--spoken", action="store_true")
    parser.add_argument("--no-label", action="store_true")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    rows = [json.loads(line) for line in (args.corpus / "metadata.jsonl").read_text().splitlines()][: args.count]
    texts = [row["text"].split() for row in rows]
    model = tessera.load(args.model)
    labels = [row["label"] for row in rows] if model.labels else None
    if args.spoken:
        sounds = model.generate(text=[row["text"] for row in rows], label=labels, seed=0).media
    else:
        read = [soundfile.read(args.corpus / row["file"], dtype="float32")[0] for row in rows]
        sounds = [torch.from_numpy(sound)[None] for sound in read]
    told = None if args.no_label else labels
    started = time.perf_counter()
    written = [text.split() for text in model.transcribe(sounds, label=told, batch=args.batch)]
    seconds = time.perf_counter() - started
    recogniser = DigitRecogniser()
    heard = [recogniser.words(sound[0].numpy()) for sound in sounds]
    words = sum(map(len, texts))
    errors = compare_words(texts, written)
    report = {
        "recordings": len(rows),
        "words": words,
        "word_error": errors.errors / words,
        "whole": sum(map(eq, texts, written)) / len(rows),
        "pocketsphinx": compare_words(texts, heard).errors / words,
        "real_time_factor": seconds / sum(sound.shape[1] / 16000 for sound in sounds),
    }
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
