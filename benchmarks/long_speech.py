"""How many words of a text longer than the model has learned are heard, said at once or in pieces?

    python benchmarks/long_speech.py [MODEL] [--seeds 5] [--keep DIR]

One text of 18 digit words in six sentences, each way with the same seeds and voice; pocketsphinx with a digit grammar
listens (recogniser.py). `extra`: words heard that are not in the text at their place.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import tessera

sys.path.insert(0, str(Path(__file__).parent))
from recogniser import DigitRecogniser, hits

TEXT = "Three one four. One five nine. Two six five. Three five eight. Nine seven nine. Three two three."
WAYS = {
    "at once": {"split": "off"},
    "in pieces, nothing carried": {"carry": "nothing"},
    "in pieces, nothing carried, no retries": {"carry": "nothing", "retries": 0},
    "in pieces, audio carried": {"carry": "audio"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="speech")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="write the sound files here")
    args = parser.parse_args()
    model, recogniser = tessera.load(args.model), DigitRecogniser()
    assert model.text is not None
    spoken = model.text.decode(model.text.encode(TEXT)).split()
    label = {"label": 0} if model.labels else {}
    print("| how | words heard | extra | ended well | seconds |\n|---|---|---|---|---|")
    for name, settings in WAYS.items():
        heard = extra = ended = 0
        seconds = 0.0
        for seed in range(args.seeds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a long text that is not split, which is the point
                result = model.generate(text=TEXT, seed=seed, **label, **settings)  # pyright: ignore[reportArgumentType]
            words = recogniser.words(result.media[0][0].numpy())
            found = hits(spoken, words)
            heard, extra, ended = heard + found, extra + len(words) - found, ended + result.ended[0]
            seconds += result.seconds
            if args.keep:
                result.save(args.keep / f"{name.replace(' ', '-').replace(',', '')}-{seed}.wav")
        total = args.seeds * len(spoken)
        print(f"| {name} | {heard} of {total} | {extra} | {ended} of {args.seeds} | {seconds / args.seeds:.1f} |")


if __name__ == "__main__":
    main()
