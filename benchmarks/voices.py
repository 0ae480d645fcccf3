"""Does generated speech take the voice of a recording? Its pitch, and what a classifier of voices makes of it.

    python benchmarks/voices.py MODEL [--texts 16] [--seed 0] [--keep DIR]      # needs espeak-ng and pocketsphinx

Eight voices of espeak-ng, four of them in no training data of `configs/voices`. Each says one text that the model is
given as voice, and the model says digit strings of samples/speech/test. Beside it what the tokenizer sets as the
limit: the voices' own recordings of the same strings after encode and decode.

- pitch: median of the voiced frames, in Hz, by autocorrelation; of all samples together.
- register: share of samples that are nearer, in log pitch, to the mean of the voice's own register (low or high) than
  to that of the other.
- voice: share that a classifier gives to the right one of the eight voices: the nearest mean of log-mel statistics
  (mean and spread of 40 bands), whitened by the spread within voices, learned from other recordings after the codec.
- words: heard by pocketsphinx with a digit grammar (recogniser.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import tessera
from tessera.samples.make_speech import SAMPLE_RATE, Utterance, speak
from tessera.tokenize.data.media import read_audio, write_audio
from tessera.tokenize.layers.stft import mel_filters

sys.path.insert(0, str(Path(__file__).parent))
from recogniser import DigitRecogniser, compare_words

TEST = Path(__file__).parent.parent / "samples" / "speech" / "test" / "metadata.jsonl"
HEARD = {"en-us": "low", "en-us+m3": "low", "en-us+f2": "high", "en-us+belinda": "high"}
UNHEARD = {"en-us+m4": "low", "en-us+max": "low", "en-us+steph": "high", "en-us+linda": "high"}
VOICES = HEARD | UNHEARD
SAMPLE = "five nine two seven"
"""What the recording of a voice says."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="write the audio files to this folder")
    args = parser.parse_args()
    model, recogniser = tessera.load(args.model), DigitRecogniser()
    longest = next(one.max_frames for one in model.lm.config.conditions if one.kind == "codes")
    texts = [row["text"] for row in map(json.loads, TEST.read_text().splitlines()) if len(row["text"].split()) <= 4]
    learned, texts = texts[args.texts : 3 * args.texts], texts[: args.texts]
    classes = Classes({voice: [codec(model, one) for one in recordings(voice, learned)] for voice in VOICES})
    print("| voice | | pitch | register | voice | words |\n|---|---|---|---|---|---|")
    for name, voices in (("heard in training", HEARD), ("not in the training data", UNHEARD)):
        for way in ("recordings after the codec", "generated"):
            rows = []
            for voice, register in voices.items():
                if way == "generated":
                    said = recordings(voice, [SAMPLE])[0]
                    result = model.generate(text=texts, voice=said[None], voice_frames=longest, seed=args.seed)
                    sounds = [media[0] for media in result.media]
                else:
                    sounds = [codec(model, one) for one in recordings(voice, texts)]
                spoken = [text.split() for text in texts]
                own = compare_words(spoken, [recogniser.words(one.numpy()) for one in sounds]).right
                pitches = [pitch(one) for one in sounds]
                right = [classes.nearest(one) == voice for one in sounds]
                rows.append((register, pitches, right, own))
                if args.keep:
                    folder = args.keep / way.split()[0]
                    folder.mkdir(parents=True, exist_ok=True)
                    for i, one in enumerate(sounds):
                        write_audio(folder / f"{voice}-{i:02}.wav", one[None], SAMPLE_RATE)
            words = sum(len(text.split()) for text in texts) * len(voices)
            each = {
                register: np.median([p for other, found, *_ in rows if other == register for p in found if p])
                for register in ("low", "high")
            }
            same = [classes.register(p) == register for register, found, *_ in rows for p in found]
            right = [one for *_, found, _ in rows for one in found]
            heard = sum(count for *_, count in rows)
            print(
                f"| {name} | {way} | {each['low']:.0f} and {each['high']:.0f} Hz | {np.mean(same):.0%} "
                f"| {np.mean(right):.0%} | {heard} of {words} |",
                flush=True,
            )


def recordings(voice: str, texts: list[str]) -> list[torch.Tensor]:
    """Samples [N] of each text by espeak-ng, at 120 words a minute."""
    with tempfile.TemporaryDirectory() as folder:
        for i, text in enumerate(texts):
            speak(Utterance(f"{i}.flac", text, voice, 120), Path(folder))
        return [read_audio(Path(folder) / f"{i}.flac", SAMPLE_RATE)[0] for i in range(len(texts))]


def codec(model: tessera.Model, samples: torch.Tensor) -> torch.Tensor:
    """Samples [N] after encode and decode."""
    return model.tokenizer.decode(model.tokenizer.encode(samples[None, None]).codes)[0, 0]


def pitch(samples: torch.Tensor) -> float:
    """Median in Hz of the frames that repeat themselves 60 to 400 times a second, 0 where none does."""
    found = []
    for frame in samples.unfold(0, 1024, 320).double().numpy() if len(samples) >= 1024 else []:
        frame = frame - frame.mean()
        if np.sqrt((frame**2).mean()) < 0.02:
            continue
        same = np.correlate(frame, frame, "full")[1023:]
        lags = slice(SAMPLE_RATE // 400, SAMPLE_RATE // 60)
        lag = lags.start + int(same[lags].argmax())
        if same[lag] > 0.5 * same[0]:
            found.append(SAMPLE_RATE / lag)
    return float(np.median(found)) if found else 0.0


class Classes:
    """Voices by the nearest mean of their recordings."""

    def __init__(self, sounds: dict[str, list[torch.Tensor]]):
        features = {voice: torch.stack([self._features(one) for one in own]) for voice, own in sounds.items()}
        self.spread = torch.cat([own - own.mean(0) for own in features.values()]).std(0) + 1e-3
        self.means = {voice: own.mean(0) for voice, own in features.items()}
        pitches: dict[str, list[float]] = {"low": [], "high": []}
        for voice, own in sounds.items():
            pitches[VOICES[voice]] += [float(np.log(found)) for found in map(pitch, own) if found]
        self.pitches = {register: float(np.mean(own)) for register, own in pitches.items()}

    def nearest(self, samples: torch.Tensor) -> str:
        """The voice of samples [N]."""
        found = self._features(samples)
        return min(self.means, key=lambda voice: float(((found - self.means[voice]) / self.spread).square().sum()))

    def register(self, hertz: float) -> str | None:
        """Of a pitch; None for 0."""
        return min(self.pitches, key=lambda register: abs(self.pitches[register] - np.log(hertz))) if hertz else None

    @staticmethod
    def _features(samples: torch.Tensor) -> torch.Tensor:
        """Mean and spread of 40 log-mel bands over the louder frames: [80]."""
        samples = torch.nn.functional.pad(samples, (0, max(0, 2048 - len(samples))))
        power = torch.stft(samples, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs()
        bands = (mel_filters(SAMPLE_RATE, 1024, 40).T @ power).clamp_min(1e-4).log()
        loud = bands.mean(0) >= bands.mean(0).median()
        return torch.cat([bands[:, loud].mean(1), bands[:, loud].std(1)])


if __name__ == "__main__":
    main()
