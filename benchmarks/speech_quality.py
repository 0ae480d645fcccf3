"""How well is generated speech understood? An outside recogniser hears it and espeak-ng's own recordings of the same
strings.

    python benchmarks/speech_quality.py [MODEL] [--corpus DIR] [--codec] [--guidance 1.5] [--temperature 0.8]
        [--json FILE] [--keep DIR]

- heard: words of 100 digit strings (samples/speech/test; none of them in the training data) that pocketsphinx with a
  digit grammar hears in order, in the recordings and in the generated speech (`made`); their ratio is what counts.
- inserted, word_error: words it hears that were not asked for, and all errors (changed, missing, inserted) per word.
- ended: share of samples where the model found the end by itself; seconds: their lengths beside the recordings'.
- --corpus: other recordings, as samples/make_speech.py makes them: of a voice that a fine-tuned model has learned.
- --codec: the recordings after encode and decode instead of generated speech, which is the ceiling the tokenizer
  sets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import soundfile
import torch

import tessera

sys.path.insert(0, str(Path(__file__).parent))
from recogniser import SAMPLE_RATE, DigitRecogniser, compare_words

TEST = Path(__file__).parent.parent / "samples" / "speech" / "test"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="speech")
    parser.add_argument("--corpus", type=Path, default=TEST, help="folder of recordings with metadata.jsonl")
    parser.add_argument("--codec", action="store_true")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("guidance", "temperature", "top-p", "min-p"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="write the audio files to this folder")
    args = parser.parse_args()
    settings = {
        name: value
        for name in ("guidance", "temperature", "top_p", "min_p")
        if (value := getattr(args, name)) is not None
    }

    rows = [json.loads(line) for line in (args.corpus / "metadata.jsonl").read_text().splitlines()][: args.count]
    recordings = [soundfile.read(args.corpus / row["file"], dtype="float32")[0] for row in rows]
    texts = [row["text"] for row in rows]
    started = time.perf_counter()
    if args.codec:
        tokenizer = (
            tessera.load_tokenizer(args.model)
            if Path(args.model, "tokenizer.safetensors").exists()
            else tessera.load(args.model).tokenizer
        )
        media = [
            tokenizer.decode(tokenizer.encode(torch.from_numpy(sound)[None, None]).codes)[0, 0].numpy()
            for sound in recordings
        ]
        ended = [True] * len(media)
    else:
        model = tessera.load(args.model)
        labels = {"label": [row["label"] for row in rows]} if model.labels else {}
        result = model.generate(text=texts, seed=args.seed, **labels, **settings)
        media, ended = [sound[0].cpu().numpy() for sound in result.media], list(result.ended)
    seconds = time.perf_counter() - started
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        for number, sound in enumerate(media):
            soundfile.write(args.keep / f"{number:04d}.wav", sound, SAMPLE_RATE)

    recogniser = DigitRecogniser()
    heard = {
        name: [recogniser.words(sound) for sound in sounds]
        for name, sounds in (("recordings", recordings), ("made", media))
    }
    counts = {name: compare_words([text.split() for text in texts], found) for name, found in heard.items()}
    spoken = sum(len(text.split()) for text in texts)
    lengths = [len(sound) / SAMPLE_RATE for sound in media]
    ratios = [length / (len(sound) / SAMPLE_RATE) for length, sound in zip(lengths, recordings, strict=True)]
    report = {
        "strings": len(texts),
        "words": spoken,
        "heard": {name: count.right for name, count in counts.items()},
        "heard_ratio": counts["made"].right / counts["recordings"].right,
        "inserted": {name: count.inserted for name, count in counts.items()},
        "word_error": {name: count.errors / spoken for name, count in counts.items()},
        "ended": sum(ended) / len(ended),
        "seconds_median": statistics.median(lengths),
        "seconds_range": [min(lengths), max(lengths)],
        "length_ratio_quartiles": [round(value, 2) for value in statistics.quantiles(ratios, n=4)],
        "real_time_factor": seconds / sum(lengths),
    }
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
