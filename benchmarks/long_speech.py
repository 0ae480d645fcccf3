"""How many words of a text longer than the model has learned are heard, said at once or in pieces?

    python benchmarks/long_speech.py [MODEL] [--seeds 5] [--keep DIR]

One text of 18 digit words in six sentences, each way with the same seeds and voice; pocketsphinx with a digit grammar
listens (recogniser.py). `extra`: words heard that are not in the text at their place. Where espeak-ng is installed, its
own recordings of the six sentences in the same voice are listened to as well, laid end to end as pieces are: what is
extra there is the listener's.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch

import tessera
from tessera.samples.make_speech import SAMPLE_RATE, Utterance, speak
from tessera.tokenize.data.media import read_audio

sys.path.insert(0, str(Path(__file__).parent))
from recogniser import DigitRecogniser, compare_words

TEXT = "Three one four. One five nine. Two six five. Three five eight. Nine seven nine. Three two three."
WAYS = {
    "at once": {"split": "off"},
    "split, nothing carried": {"carry": "nothing"},
    "split, nothing carried, no retries": {"carry": "nothing", "retries": 0},
    "split, audio carried": {"carry": "audio"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="speech")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="write the audio files to this folder")
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
            found = compare_words([spoken], [words]).right
            heard, extra, ended = heard + found, extra + len(words) - found, ended + result.ended[0]
            seconds += result.seconds
            if args.keep:
                result.save(args.keep / f"{name.replace(' ', '-').replace(',', '')}-{seed}.wav")
        total = args.seeds * len(spoken)
        print(f"| {name} | {heard} of {total} | {extra} | {ended} of {args.seeds} | {seconds / args.seeds:.1f} |")
    if model.labels and shutil.which("espeak-ng"):
        pieces = recordings(model.labels[0], args.seeds)
        show("recordings, joined", spoken, [recogniser.words(torch.cat(each).numpy()) for each in pieces], pieces)
        coded = [[codec(model, piece) for piece in each] for each in pieces]
        show(
            "recordings after the codec, joined", spoken, [recogniser.words(torch.cat(e).numpy()) for e in coded], coded
        )


def recordings(voice: str, count: int) -> list[list[torch.Tensor]]:
    """The sentences of TEXT [N] by espeak-ng, `count` times at different speeds."""
    sentences = [sentence.strip() for sentence in TEXT.split(".") if sentence.strip()]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            for j, sentence in enumerate(sentences):
                speak(Utterance(f"{i}-{j}.flac", sentence, voice, 100 + 40 * i // max(1, count - 1)), Path(folder))
        return [
            [read_audio(Path(folder) / f"{i}-{j}.flac", SAMPLE_RATE)[0] for j in range(len(sentences))]
            for i in range(count)
        ]


def codec(model: tessera.Model, samples: torch.Tensor) -> torch.Tensor:
    """Samples [N] after encode and decode."""
    return model.tokenizer.decode(model.tokenizer.encode(samples[None, None]).codes)[0, 0]


def show(name: str, spoken: list[str], heard: list[list[str]], sounds: list[list[torch.Tensor]]) -> None:
    """One line of the table for recordings."""
    found = compare_words([spoken] * len(heard), heard).right
    seconds = sum(len(piece) for pieces in sounds for piece in pieces) / SAMPLE_RATE / len(sounds)
    extra = sum(map(len, heard)) - found
    print(f"| {name} | {found} of {len(sounds) * len(spoken)} | {extra} | | {seconds:.1f} |")


if __name__ == "__main__":
    main()
