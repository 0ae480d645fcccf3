"""How good is the voice? The tokenizer's reconstructions of unseen sentences, beside the recordings themselves.

    pip install -e ".[eval,bench]"
    python benchmarks/voice_quality.py TOKENIZER [--corpus out/voice/corpus/test/sentences] [--count 200] [--json FILE]
        [--keep DIR]

- STOI (0 to 1) and PESQ (wide band at 16 kHz, 1 to 4.6) compare a reconstruction with its recording.
- DNSMOS (overall, 1 to 5) judges a file alone, so it is given for the recordings, too: a network of Microsoft's that
  predicts what listeners say of noise and distortion, from the package speechmos; arXiv:2110.01763.

The corpus is made by samples/make_voice.py; its 200 test sentences have 3 to 30 words and are in no training text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import tessera
from tessera.tokenize.audio.resample import resample
from tessera.tokenize.data.corpus import FolderCorpus, open_corpus
from tessera.tokenize.data.media import write_audio
from tessera.tokenize.spec import AudioGeometry
from tessera.train.evaluation.reconstruction_metrics import pesq, stoi

CORPUS = "out/voice/corpus/test/sentences"
MOS_RATE, MOS_SECONDS = 16000, 9.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", help="folder of a tokenizer or of a model, or the name of a bundled one")
    parser.add_argument("--corpus", default=CORPUS, help=f"folder of recordings ({CORPUS})")
    parser.add_argument("--count", type=int, default=200, help="recordings, spread over the corpus")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="write the reconstructions to this folder")
    args = parser.parse_args()

    tokenizer = tessera.load_tokenizer(args.tokenizer)
    geometry = tokenizer.spec.geometry
    assert isinstance(geometry, AudioGeometry)
    corpus = open_corpus(FolderCorpus(path=args.corpus))
    numbers = np.linspace(0, len(corpus) - 1, min(args.count, len(corpus))).round().astype(int).tolist()
    recordings = [corpus.media(number, geometry)[0] for number in numbers]
    started = time.perf_counter()
    made = [tokenizer.decode(tokenizer.encode(sound[None, None]).codes)[0, 0, : len(sound)] for sound in recordings]
    seconds = time.perf_counter() - started
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        for number, sound in zip(numbers, made, strict=True):
            write_audio(args.keep / f"{number:04d}.flac", sound.clamp(-1, 1)[None], geometry.sample_rate)

    report = measure(made, recordings, geometry.sample_rate)
    length = sum(len(sound) for sound in recordings) / geometry.sample_rate
    report |= {"recordings": len(recordings), "seconds": length, "real_time_factor": seconds / length}
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(made: list[torch.Tensor], recordings: list[torch.Tensor], sample_rate: int) -> dict:
    """Means of the scores over pairs of samples [N]; STOI and PESQ without those they are not defined for."""
    report: dict = {}
    for name, score in (("stoi", stoi), ("pesq", pesq)):
        scores = [score(a, b, sample_rate) for a, b in zip(made, recordings, strict=True)]
        known = [value for value in scores if value is not None]
        report[name] = statistics.mean(known)
        report[f"{name}_undefined"] = len(scores) - len(known)
    judge = MOSJudge.find()
    if judge is None:
        print("without DNSMOS: pip install 'tessera-lm[bench]'", file=sys.stderr)
        return report
    for name, sounds in (("dnsmos", made), ("dnsmos_of_recordings", recordings)):
        scores = [judge.overall(sound, sample_rate) for sound in sounds]
        report[name] = statistics.mean(scores)
        report[f"{name}_deviation"] = statistics.stdev(scores)
    return report


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
